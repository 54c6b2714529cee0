"""Adapters of peft: LoRA on the language model's query and value projections, rows of new tokens.

They are folded into the weights when training ends. Adapters of quantized layers stay separate.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from reasonseg.errors import InputError
from reasonseg.nn.quantization import is_quantized

TARGETS = ("q_proj", "v_proj")
NAME = "default"  # peft's name for the only adapter of a layer


def add_lora(
    layers: nn.Module,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = TARGETS,
) -> list[nn.Parameter]:
    """Adds LoRA adapters to the projections in `layers` and returns their parameters (float32).

    The projections themselves are frozen. `rank` is r; the adapters are scaled by `alpha` / r
    (LoRA, Hu et al. 2021). Raises `InputError` where there are no such projections, or adapters
    already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if adapters(layers):
        raise InputError(
            "the language model has adapters already; fold them into the weights first "
            "(reasonseg merge)"
        )
    names = {name.rsplit(".", 1)[-1] for name, _ in layers.named_modules()}
    if not {target.rsplit(".", 1)[-1] for target in targets} <= names:
        raise InputError(
            f"the language model has no {' and '.join(targets)} for LoRA; train all of its "
            "weights with train.lora=0"
        )
    # peft reads these flags
    flags: Any = layers
    flags.is_loaded_in_4bit = any(type(m).__name__ == "Linear4bit" for m in layers.modules())
    flags.is_loaded_in_8bit = any(type(m).__name__ == "Linear8bitLt" for m in layers.modules())
    # peft annotates an integer, but computes with any number
    scale: Any = alpha
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=list(targets)),
        layers,
    )
    added = [p for name, p in layers.named_parameters() if ".lora_" in name]
    for p in added:
        # peft takes the dtype of the weight; small steps would be lost in bfloat16
        p.data = p.data.float()
        p.requires_grad_(True)
    return added


def add_rows(model: Any, ids: Sequence[int]) -> list[nn.Parameter]:
    """Makes the rows of some tokens trainable and returns them (float32).

    The rows are those of the embeddings and, where it is not tied to them, of the head. The
    embeddings and the head themselves are frozen; what else is trained stays so. `model` is a
    transformers model.
    """
    from peft import TrainableTokensConfig, inject_adapter_in_model

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = ends[0].weight is ends[1].weight
    names = [
        next(name for name, m in model.named_modules() if m is end)
        for end in (ends[:1] if tied else ends)
    ]
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    config = TrainableTokensConfig(
        target_modules=[n.rsplit(".", 1)[-1] for n in names], token_indices=sorted(ids)
    )
    inject_adapter_in_model(config, model)
    rows = []
    for name, p in model.named_parameters():
        if "trainable_tokens_delta" in name:
            p.data = p.data.float()
            rows.append(p.requires_grad_(True))
        else:
            # embeddings and head have other names now; they stay frozen
            p.requires_grad_(trained.get(name, False))
    return rows


def adapters(module: nn.Module) -> dict[str, Any]:
    """All layers with adapters, by name: peft's `LoraLayer` and `TrainableTokensLayer`."""
    if "peft" not in sys.modules:  # then there are none; to import it takes a second
        return {}
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return {
        n: m for n, m in module.named_modules() if isinstance(m, LoraLayer | TrainableTokensLayer)
    }


def fold_adapters(module: nn.Module) -> None:
    """Folds all adapters into the weights and removes them; those of quantized layers stay.

    LoRA: W + alpha / r B A. Trained rows replace the rows of their tokens.
    """
    for name, layer in adapters(module).items():
        base = layer.get_base_layer()
        if is_quantized(base):
            continue
        if not getattr(layer, "tied_adapter", None):
            layer.merge()
        # peft does not increase the version counter by which caches notice a changed weight
        with torch.no_grad():
            base.weight.add_(0)
        place, _, last = name.rpartition(".")
        setattr(module.get_submodule(place), last, base)
