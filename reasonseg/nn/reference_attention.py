"""Parts of VLP-SAM's reference prompter: attention layers, patch similarity, positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attend(nn.Module):
    """Attention, residual, then the norm; positions are added to the keys only."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention, self.norm = (
            nn.MultiheadAttention(width, heads, batch_first=True),
            nn.LayerNorm(width),
        )

    def forward(
        self, states: torch.Tensor, seen: torch.Tensor | None = None, positions=None
    ) -> torch.Tensor:
        """States `[b, k, d]` after attention to `seen` `[b, t, d]` (None: to themselves)."""
        values = states if seen is None else seen
        keys = values if positions is None else values + positions
        return self.norm(states + self.attention(states, keys, values, need_weights=False)[0])


def resemblance(query: torch.Tensor, references: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """VLP-SAM's pseudo mask `[b, t]`: the largest cosine similarity of each query patch.

    The maximum is over the marked patches of all references. `query` is `[b, t, c]`, `references`
    are `[b, r, t, c]`, their `masks` `[b, r, h, w]`.
    """
    grid = math.isqrt(query.shape[1])
    shares = F.interpolate(masks, (grid, grid), mode="bilinear", align_corners=True).flatten(2)
    marked = (references * shares[..., None]).flatten(1, 2)
    sizes = query.norm(dim=-1)[:, :, None] * marked.norm(dim=-1)[:, None]
    return (query @ marked.transpose(1, 2) / (sizes + 1e-7)).amax(2)


def sine_positions(grid: int, width: int, temperature: float = 10000.0) -> torch.Tensor:
    """DETR's sine positions of a square grid, `[grid * grid, width]`.

    First the channels of y, then those of x; angles go from above 0 to 2 pi.
    """
    half = width // 2
    steps = torch.arange(1, grid + 1, dtype=torch.float32) / (grid + 1e-6) * 2 * math.pi
    rates = temperature ** (2 * (torch.arange(half) // 2) / half)
    angles = steps[:, None] / rates
    axis = torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1)
    y, x = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([y, x], 2).flatten(0, 1)


def pooled(
    features: torch.Tensor, shares: torch.Tensor, weights: torch.Tensor, area: float
) -> torch.Tensor:
    """Features `[b, r, t, c]` averaged under masks and over r references, `[b, 1, c]`.

    `shares` `[b, r, t]` are those of each patch under its mask, `weights` `[b, r]` those of the
    references; `area` is added to the area of a mask.
    """
    means = (features * shares[..., None]).sum(2) / (shares.sum(2, keepdim=True) + area)
    return (means * weights[..., None].to(means)).sum(1, keepdim=True)
