"""What to segment, as a `Prompt` for the decoder. One file a kind; `base.py` says what one is."""
