"""Where samples come from. One file a kind."""
