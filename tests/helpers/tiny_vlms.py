"""Real vision-language models of transformers, tiny and random, with their real processors.

`vlm(name)` gives (model, processor). What they say is put into their mouths by `says`.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from reasonseg.checkpoints.part_packages import LANGUAGE, language_tokenizer
from reasonseg.nn.gguf import Gguf

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(*added: str) -> Any:
    """The packaged language model's tokenizer with further special tokens."""
    made = language_tokenizer(Gguf.open(LANGUAGE.checked()).metadata, ())
    made.add_special_tokens({"additional_special_tokens": list(added)})
    made.padding_side = "left"
    return made


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "head_dim": 16,
}


def _qwen(kind: str, patch: int) -> tuple[Any, Any]:
    names = (
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
    )
    tok = tokenizer(*names)
    tok.image_token, tok.video_token = "<|image_pad|>", "<|video_pad|>"
    ids = {n: tok.convert_tokens_to_ids(n) for n in names}
    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 200}
    images = tf.Qwen2VLImageProcessor(patch_size=patch, size=limits)
    chat = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    stem = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    videos = tf.Qwen3VLVideoProcessor() if kind == "qwen3_vl" else tf.Qwen2VLVideoProcessor()
    processor = getattr(tf, f"{stem}Processor")(images, tok, videos, chat_template=chat)
    sections = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {**TEXT, "vocab_size": len(tok), "rope_parameters": sections}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": patch}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
    if kind == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1]}
    if kind == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = getattr(tf, f"{stem}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return getattr(tf, f"{stem}ForConditionalGeneration")(config), processor


def _internvl() -> tuple[Any, Any]:
    tok = tokenizer("<IMG_CONTEXT>", "<img>", "</img>", "<video>")
    tok.start_image_token, tok.end_image_token = "<img>", "</img>"
    tok.context_image_token, tok.video_token = "<IMG_CONTEXT>", "<video>"
    for name, text in (
        ("start_image", "<img>"),
        ("end_image", "</img>"),
        ("context_image", "<IMG_CONTEXT>"),
    ):
        setattr(tok, f"{name}_token_id", tok.convert_tokens_to_ids(text))
    images = tf.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True)
    chat = CHAT.replace("IMAGE", "<IMG_CONTEXT>")
    processor = tf.InternVLProcessor(
        images, tok, tf.InternVLVideoProcessor(), image_seq_length=4, chat_template=chat
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    }
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tok)},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return tf.InternVLForConditionalGeneration(config), processor


SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def _paligemma() -> tuple[Any, Any]:
    tok = tokenizer("<image>", *(f"<loc{k:04d}>" for k in range(1024)))
    images = tf.SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(images, tok)
    config = tf.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **SIGLIP, "projection_dim": 32},
        text_config={"model_type": "gemma", **TEXT, "vocab_size": len(processor.tokenizer)},
        image_token_id=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    return tf.PaliGemmaForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    tok = tokenizer("<image_soft_token>", "<start_of_image>", "<end_of_image>")
    tok.image_token, tok.boi_token, tok.eoi_token = (
        "<image_soft_token>",
        "<start_of_image>",
        "<end_of_image>",
    )
    tok.image_token_id = tok.convert_tokens_to_ids("<image_soft_token>")
    tok.boi_token_id = tok.convert_tokens_to_ids("<start_of_image>")
    images = tf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    chat = CHAT.replace("IMAGE", "<start_of_image>")
    processor = tf.Gemma3Processor(images, tok, chat_template=chat, image_seq_length=4)
    config = tf.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **SIGLIP},
        text_config={"model_type": "gemma3_text", **TEXT, "vocab_size": len(tok)},
        mm_tokens_per_image=4,
        image_token_id=tok.image_token_id,
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
    )
    return tf.Gemma3ForConditionalGeneration(config), processor


def _florence2() -> tuple[Any, Any]:
    tok = tokenizer("<image>", *(f"<loc_{k}>" for k in range(1000)))
    tok.image_token, tok.image_token_id = "<image>", tok.convert_tokens_to_ids("<image>")
    images = tf.CLIPImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}
    )
    images.image_seq_length = 5
    processor = tf.Florence2Processor(images, tok)
    text = {
        "model_type": "bart",
        "vocab_size": len(tok),
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    vision = {
        "embed_dim": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "num_groups": [1, 1, 1, 1],
        "projection_dim": 32,
    }
    config = tf.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tok.image_token_id
    )
    return tf.Florence2ForConditionalGeneration(config), processor


def _kosmos2() -> tuple[Any, Any]:
    names = (
        "<image>",
        "</image>",
        "<grounding>",
        "<phrase>",
        "</phrase>",
        "<object>",
        "</object>",
        "</delimiter_of_multi_objects/>",
        *(f"<patch_index_{k:04d}>" for k in range(1024)),
    )
    tok = tokenizer(*names)
    images = tf.CLIPImageProcessor(
        size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56}
    )
    processor = tf.Kosmos2Processor(images, tok)
    text = {
        "vocab_size": len(tok),
        "embed_dim": 32,
        "layers": 1,
        "ffn_dim": 32,
        "attention_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
    }
    config = tf.Kosmos2Config(
        text_config=text,
        vision_config={**SIGLIP, "model_type": "kosmos_2_vision_model"},
        latent_query_num=64,
    )
    return tf.Kosmos2ForConditionalGeneration(config), processor


def _glm4v() -> tuple[Any, Any]:
    names = (
        "<|image|>",
        "<|video|>",
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
    )
    tok = tokenizer(*names)
    tok.image_token, tok.video_token = names[:2]
    tok.image_token_id, tok.video_token_id = map(tok.convert_tokens_to_ids, names[:2])
    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 400}
    processor = tf.Glm4vProcessor(
        tf.Glm4vImageProcessor(size=limits),
        tok,
        tf.Glm4vVideoProcessor(),
        chat_template=CHAT.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    sections = {
        "rope_type": "default",
        "mrope_section": [2, 3, 3],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    }
    text = {**TEXT, "vocab_size": len(tok), "rope_parameters": sections}
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "patch_size": 14,
        "image_size": 56,
    }
    ids = [tok.convert_tokens_to_ids(n) for n in names]
    config = tf.Glm4vConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[0],
        video_token_id=ids[1],
        image_start_token_id=ids[2],
        image_end_token_id=ids[3],
        video_start_token_id=ids[4],
        video_end_token_id=ids[5],
    )
    return tf.Glm4vForConditionalGeneration(config), processor


MAKERS = {
    "qwen2_vl": lambda: _qwen("qwen2_vl", 14),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl", 14),
    "qwen3_vl": lambda: _qwen("qwen3_vl", 16),
    "internvl": _internvl,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "florence2": _florence2,
    "glm4v": _glm4v,
    "kosmos2": _kosmos2,
}


def vlm(name: str) -> tuple[Any, Any]:
    """(model, processor) of a family; the weights are random, and the same each time."""
    torch.manual_seed(0)
    model, processor = MAKERS[name]()
    return model.eval(), processor


def says(model: Any, tok: Any, words: str) -> None:
    """Makes a model say these words: its `generate` runs one real step, then gives them."""
    real = model.generate

    def generate(**inputs: Any) -> torch.Tensor:
        real(**{**inputs, "max_new_tokens": 1})
        ids = torch.tensor([tok.encode(words, add_special_tokens=False)])
        if model.config.is_encoder_decoder:
            return ids
        return torch.cat([inputs["input_ids"], ids], 1)

    model.generate = generate
