"""LoRA on the language model's query and value projections (peft), folded into the weights when training ends."""

from __future__ import annotations

import torch
from torch import nn

from reasonseg.errors import InputError

TARGETS = ("q_proj", "v_proj")


def add_lora(layers: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> list[nn.Parameter]:
    """Puts adapters beside the projections in `layers` and returns their parameters; the projections themselves are frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rsplit(".", 1)[-1] for name, _ in layers.named_modules()}
    if not set(TARGETS) <= names:
        raise InputError(
            f"the language model has no {' and '.join(TARGETS)} for LoRA; train it whole with train.lora=0"
        )
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(TARGETS)), layers
    )
    added = [p for name, p in layers.named_parameters() if ".lora_" in name]
    for p in added:
        p.requires_grad_(True)
    return added


def fold_lora(layers: nn.Module) -> None:
    """Adds each adapter to its weight (W + alpha/r B A) and takes it away."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(layers.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            with torch.no_grad():  # peft writes past the counter by which caches know that a weight has changed
                module.get_base_layer().weight.add_(0)
            place, _, last = name.rpartition(".")
            setattr(layers.get_submodule(place), last, module.get_base_layer())
