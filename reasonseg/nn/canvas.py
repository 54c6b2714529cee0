"""Building blocks for SegGPT's canvases: one layer of its encoder, and arrangements of a canvas."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from reasonseg.nn.attention import attend as plain


def block(
    layer: Any,
    states: torch.Tensor,
    grouped: tuple[int, int, int] | None,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The output `[r, h, w, d]` of one encoder layer on states `[r, h, w, d]`.

    With `grouped` (streams, images, references), the attention output of the lower half of each
    canvas, which holds the query image, is averaged over the references with `weights`
    `[images, references]` (SegGPT's feature ensemble). `layer` is a layer of transformers' SegGPT.
    """
    attended = attend(layer.attention, layer.layernorm_before(states))
    if grouped is not None:
        half = attended.shape[1] // 2
        rows = attended[:, half:].unflatten(0, grouped)
        mean = (
            (rows * weights[None, :, :, None, None, None]).sum(2, keepdim=True).to(attended.dtype)
        )
        attended = torch.cat([attended[:, :half], mean.expand_as(rows).flatten(0, 2)], 1)
    states = states + layer.drop_path(attended)
    return states + layer.drop_path(layer.mlp(layer.layernorm_after(states)))


def attend(attention: Any, states: torch.Tensor) -> torch.Tensor:
    """Output `[r, h, w, d]` of transformers' SegGPT attention, with torch's fused kernels.

    Relative positions add `q . R[row]` and `q . R[column]` to every product `q . k`. This is the
    same as h + w additional channels: in q they hold these values, in k a one at the row and the
    column of the key. So no bias of `[r, heads, t, t]` is stored. On CPU with gradients, the two
    plain products of `reasonseg.nn.attention` are used.
    """
    count, height, width, _ = states.shape
    heads = attention.num_attention_heads
    query, key, value = (
        attention.qkv(states).view(count, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    )
    if not attention.use_relative_position_embeddings:
        seen = F.scaled_dot_product_attention(query, key, value, scale=attention.scale).transpose(
            1, 2
        )
        return attention.proj(seen.flatten(2).unflatten(1, (height, width)))
    grid = query.unflatten(2, (height, width))
    rows = attention.get_rel_pos(height, height, attention.rel_pos_h).to(query)
    columns = attention.get_rel_pos(width, width, attention.rel_pos_w).to(query)
    more = [
        torch.einsum("rnhwc,hkc->rnhwk", grid, rows),
        torch.einsum("rnhwc,wkc->rnhwk", grid, columns),
    ]
    ones = torch.eye(height + width, device=query.device, dtype=query.dtype)
    places = torch.cat(
        [
            ones[:height, :height].repeat_interleave(width, 0),
            ones[height:, height:].repeat(height, 1),
        ],
        1,
    )
    query = torch.cat([query * attention.scale, *(part.flatten(2, 3) for part in more)], -1)
    key = torch.cat([key, places.expand(count, heads, -1, -1)], -1)
    if states.device.type == "cpu" and torch.is_grad_enabled():
        seen, _ = plain(attention, query, key, value, scaling=1.0)
    else:
        value = F.pad(value, (0, height + width))  # the fused kernels need values as wide as keys
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)[
            ..., : -height - width
        ].transpose(1, 2)
    return attention.proj(seen.flatten(2).unflatten(1, (height, width)))


def arranged(pixels: torch.Tensor, turn: int) -> torch.Tensor:
    """Squares `[..., s, s]` in one of eight arrangements.

    `turn` 0 to 3: so many quarter turns; 4 to 7: a horizontal flip, then `turn` - 4 quarter turns.
    """
    return torch.rot90(pixels.flip(-1) if turn >= 4 else pixels, turn % 4, (-2, -1))


def restored(pixels: torch.Tensor, turn: int) -> torch.Tensor:
    """Undoes `arranged` on squares `[..., s, s]`."""
    turned = torch.rot90(pixels, -(turn % 4), (-2, -1))
    return turned.flip(-1) if turn >= 4 else turned


def tiled(squares: torch.Tensor) -> torch.Tensor:
    """Squares `[q, k, 3, s, s]` side by side in one square, `[q, 1, 3, s, s]` (spatial ensemble).

    Cells that are left over show the squares again, from the first on.
    """
    shown, side = squares.shape[1], squares.shape[-1]
    across = math.ceil(math.sqrt(shown))
    cells = squares[:, [i % shown for i in range(across**2)]]
    rows = (
        cells.unflatten(1, (across, across)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    )
    return F.interpolate(rows, (side, side), mode="area")[:, None]
