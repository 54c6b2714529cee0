"""Who decides what to segment: a prompter makes a `Prompt`. One file a kind."""
