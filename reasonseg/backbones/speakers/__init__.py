"""Models that answer pictures and words with words: on this machine, or behind a server."""
