"""Features of every patch, and of labels, in the joint space of a CLIP or SigLIP model.

They are computed layer by layer from the weights of transformers' classes; nothing in these is
patched. With `surgery`, the last blocks also have the second path of CLIP Surgery (Li et al. 2023,
"CLIP Surgery"): value-value attention, no MLP, and every attention reads the ordinary path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from reasonseg.errors import InputError

TEMPLATE = "a photo of a {}"


def dense_features(model: Any, pixels: torch.Tensor, surgery: int = 0) -> torch.Tensor:
    """Patch features `[b, t, d]` of unit length, row by row, without the class token.

    `pixels` are `[b, 3, s, s]`; d is the width of the joint space. `model` is a transformers
    `CLIPModel` or `SiglipModel`. `surgery` is the number of last blocks with the second path (6 in
    CLIP Surgery; 0 for a SigLIP model). Raises `InputError` where the model has no so many blocks
    or is no CLIP model.
    """
    vision = model.vision_model
    states = vision.embeddings(pixels.to(vision.embeddings.patch_embedding.weight.dtype))
    clip = hasattr(vision, "pre_layrnorm")
    if clip:
        states = vision.pre_layrnorm(states)
    layers = vision.encoder.layers
    if surgery > len(layers) or (surgery and not clip):
        raise InputError(
            f"surgery {surgery} needs a CLIP vision tower with at least as many blocks; this one "
            f"is {model.config.model_type}"
        )
    other = None
    for number, layer in enumerate(layers):
        if number < len(layers) - surgery:
            states = _block(layer, states)
            continue
        other = states if other is None else other
        read = layer.layer_norm1(states)
        other = other + value_attention(layer.self_attn, read)
        states = _block(layer, states)
    if other is not None:
        states = torch.cat([states[:, :1], other[:, 1:]], 1)
    states = vision.post_layernorm(states)
    if clip:
        states = model.visual_projection(states)[:, 1:]
    return F.normalize(states.float(), dim=-1)


def _block(layer: Any, states: torch.Tensor) -> torch.Tensor:
    out = layer(states, attention_mask=None)
    return out[0] if isinstance(out, tuple) else out


def value_attention(attention: Any, read: torch.Tensor) -> torch.Tensor:
    """Attention `[b, t, d]` of states `read` `[b, t, d]`, with the values as queries and keys too.

    The output projection follows, as in ordinary attention.
    """
    heads = attention.num_heads
    values = attention.v_proj(read).unflatten(-1, (heads, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(values, values, values)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def text_features(
    model: Any, tokenizer, labels: Sequence[str], template: str = TEMPLATE
) -> torch.Tensor:
    """Features `[n, d]` of unit length of n labels.

    Each label is put into `template`; texts are cut at the maximum length of the text tower.
    """
    length = model.config.text_config.max_position_embeddings
    texts = [template.format(label) for label in labels]
    ids = tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return text_features_of_ids(model, ids["input_ids"].to(model.logit_scale.device))


def text_features_of_ids(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Features `[n, d]` of unit length of token ids `[n, t]`."""
    features = model.get_text_features(input_ids=ids)
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    return F.normalize(features.float(), dim=-1)


def attention_map(features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Similarity `[b, t]` of each patch `[b, t, d]` to a text `[b, d]`, from 0 (least) to 1 (most).

    Dot products, scaled per image. All 0 where the text is a vector of zeros, which stands for no
    text.
    """
    likeness = torch.einsum("btd,bd->bt", features, text)
    low, high = likeness.amin(1, keepdim=True), likeness.amax(1, keepdim=True)
    return (likeness - low) / (high - low).clamp(min=1e-12)


def last_states(clip: Any, tokenizer: Any, texts: list[str], device: torch.device) -> torch.Tensor:
    """The state `[n, width]` of the last word of each text in a text tower.

    The tower is causal: that state has read the whole text.
    """
    ids = tokenizer(
        texts,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=clip.config.max_position_embeddings,
        return_tensors="pt",
    )
    states = clip(**ids.to(device)).last_hidden_state
    return states[torch.arange(len(states)), ids["attention_mask"].sum(1) - 1]


def mean_words(embeddings: torch.Tensor, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The embeddings of the words of each text, averaged: `[n, width]`."""
    return torch.stack(
        [embeddings[tokenizer.encode(" " + t, add_special_tokens=False)].mean(0) for t in texts]
    )


def joint_width(clip: Any) -> int:
    """Width of the space that patches and labels share."""
    config = clip.config
    return (
        config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size
    )
