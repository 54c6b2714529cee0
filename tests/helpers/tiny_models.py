"""Tiny random models of other families, built from configs, with real processors. Nothing is
downloaded.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from reasonseg.nn.pretrained import EMBEDDED

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def tiny_qwen(folder: Path):
    """(folder of a Qwen2.5-VL processor, network config as a dict) of a model with about 50 k
    parameters.
    """
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "backbone")
    tokenizer.add_tokens(QWEN_TOKENS, special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    images = Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=1024, merge_size=2)
    videos = Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
    Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=QWEN_TEMPLATE).save_pretrained(
        folder
    )
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_TOKENS), strict=True))
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
    }
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "spatial_merge_size": 2}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    text |= {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
        }
    }
    text |= {"eos_token_id": ids["<|im_end|>"], "pad_token_id": 0}
    network = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": text}
    network |= {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]}
    network |= {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    return str(folder), network


def reference_model():
    """References and SAM, without words, small and fresh."""
    from reasonseg import Segmenter
    from reasonseg.config.model import ModelSettings
    from reasonseg.config.schema import Kind
    from reasonseg.decoders.sam import Config as SamConfig
    from reasonseg.prompters.vlp import Config

    torch.manual_seed(0)
    settings = ModelSettings(
        Kind("sam", SamConfig.example()), references=Kind("vlp", Config.example())
    )
    segmenter = Segmenter.build(settings).eval()
    for weight in segmenter.decoder.model.mask_decoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return segmenter
