"""Attention as two batched matrix products, for training small transformers on CPU.

torch's fused CPU kernel is slow on heads of 32 channels. `scripts/bench_attention.py` measures the
gain of the two plain products. `use_products` switches a model to them.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "products"


def attend(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Attention with the signature that transformers expects of an attention function.

    `query`, `key` and `value` are `[b, h, t, d]`; keys and values have as many heads as queries.
    Returns (`[b, t, h, d]`, None). Computes in the autocast dtype where autocast is on, otherwise
    in the dtype of `value`.
    """
    autocast = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if autocast else value.dtype
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (x.to(dtype) for x in (query, key, value))
        weights = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(2, 3)
        if attention_mask is not None:
            if attention_mask.dtype == torch.bool:
                attention_mask = torch.zeros_like(attention_mask, dtype=dtype).masked_fill(
                    ~attention_mask, -1e4
                )
            weights = weights + attention_mask.to(dtype)
        return (weights.softmax(-1) @ value).transpose(1, 2), None


def use_products(model: PreTrainedModel) -> None:
    """Makes a transformers model use this attention from now on."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
