"""Mask decoders. One file a kind; `base.py` says what one is."""
