"""Attention as two batched products, for training small transformers on CPU.

torch's fused CPU kernel is slow on heads of 32 channels; `scripts/bench_attention.py` measures what
the two plain products gain. `use_products` switches a model over.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "products"


def attend(module, query, key, value, attention_mask=None, scaling=None, **_):
    """transformers' attention signature:

    `[b, h, t, d]` each -> (`[b, t, h, d]`, None). Key and value heads as many as query's.
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
    """Lets a model attend this way from now on."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
