"""Network blocks and helpers that two or more packages share."""
