"""Muon for the matrices of transformer layers, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al., 2024) on 2-d weights of linear layers, AdamW on the rest.

    The rest are embeddings, norms, biases and convolutions. Muon's step is scaled to the usual RMS
    of AdamW's (0.2 lr). AdamW itself runs at a quarter of `lr`, so that both have similar step
    sizes. `named` are (name, parameter) pairs.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float = 0.01,
        betas=(0.9, 0.98),
    ):
        named = [(name, p) for name, p in named if p.requires_grad]
        matrices = [
            p for name, p in named if p.ndim == 2 and "embed" not in name and "token" not in name
        ]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(
                Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if rest:
            self.parts.append(AdamW(rest, lr=lr / 4, weight_decay=0.0, betas=betas))
        super().__init__([p for _, p in named], {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        """One step of both optimizers."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        """The states of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Restores the states of both optimizers."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
