"""Who reads and speaks: multimodal language models from transformers. One file a kind."""
