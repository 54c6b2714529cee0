"""8-bit and 4-bit weights with bitsandbytes, for the language model's layers only.

The vision tower, the projector, the embeddings, the head, the prompter and the mask decoder keep
their precision: they are small, and masks lose quality first.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from reasonseg.errors import InputError

KINDS = ("int8", "nf4")


def library() -> Any:
    """The module bitsandbytes. Raises `InputError` where it is not installed."""
    try:
        import bitsandbytes
    except ImportError:
        raise InputError("quantization needs bitsandbytes; install reasonseg[quant]") from None
    # it logs a cast at every layer and step
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return bitsandbytes


def prepare(layers: nn.Module, kind: str, dtype: torch.dtype) -> list[str]:
    """Replaces linear layers in `layers` by empty 8-bit or 4-bit ones; returns their names.

    `kind` is one of `KINDS`. Raises `InputError` for another one.
    """
    bnb = library()
    if kind not in KINDS:
        raise InputError(f"quantization {kind!r} is not one of {', '.join(KINDS)}")
    names = [name for name, module in layers.named_modules() if type(module) is nn.Linear]
    for name in names:
        old: Any = layers.get_submodule(name)
        bias = old.bias is not None
        with torch.device("meta"):
            if kind == "int8":
                new = bnb.nn.Linear8bitLt(
                    old.in_features, old.out_features, bias, has_fp16_weights=False, threshold=6.0
                )
            else:
                new = bnb.nn.Linear4bit(
                    old.in_features, old.out_features, bias, compute_dtype=dtype, quant_type="nf4"
                )
        new.requires_grad_(False)
        place, _, last = name.rpartition(".")
        setattr(layers.get_submodule(place), last, new)
    return names


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer has 8-bit or 4-bit weights."""
    return type(module).__module__.startswith("bitsandbytes.")


def quantized(layer: nn.Module, weight: torch.Tensor, device: torch.device) -> nn.Parameter:
    """`weight` as the quantized parameter of a layer from `prepare`, on `device`."""
    bnb = library()
    if isinstance(layer, bnb.nn.Linear8bitLt):
        return bnb.nn.Int8Params(
            weight.contiguous(), requires_grad=False, has_fp16_weights=False
        ).to(device)
    return bnb.nn.Params4bit(
        weight.contiguous(), requires_grad=False, quant_type="nf4", module=layer
    ).to(device)


def quantize(layers: nn.Module, kind: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Quantizes a module that has values, layer by layer; returns the names of these layers."""
    values = {name: m for name, m in layers.named_modules() if type(m) is nn.Linear}
    names = prepare(layers, kind, dtype)
    for name in names:
        old, new = values.pop(name), layers.get_submodule(name)
        new.weight = quantized(new, old.weight.detach().to(dtype), device)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach().to(device, dtype), requires_grad=False)
    return names
