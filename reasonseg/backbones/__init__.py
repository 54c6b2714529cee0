"""Vision-language models from transformers that say `<SEG>`. One file a kind; `base.py` says what
one is.
"""
