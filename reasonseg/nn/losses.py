"""Mask losses, one value per mask, so that a batch is a sum divided by a global count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

SURE = -50.0  # a logit of background whose loss is 0


def dice(
    logits: torch.Tensor, targets: torch.Tensor, scale: float = 1000.0, eps: float = 1e-6
) -> torch.Tensor:
    """1 - Dice overlap of logits and targets (0 or 1) `[n, h, w]`, as `[n]`.

    `scale` and `eps` smooth as LISA does: both sums are divided by 1000 before 1e-6 is added
    (model/LISA.py).
    """
    shares, targets = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlap = 2 * (shares / scale * targets).sum(-1)
    total = (shares / scale).sum(-1) + (targets / scale).sum(-1)
    return 1 - (overlap + eps) / (total + eps)


def bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross entropy over the pixels of each mask: `[n, h, w]` to `[n]`."""
    return (
        F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
        .flatten(1)
        .mean(1)
    )


def iou_error(predicted: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Squared error of the predicted IoU, `[n]` (SAM, section A).

    `predicted` `[n]` is compared to the true IoU of the thresholded `logits` with `targets`, both
    `[n, h, w]`. An empty union counts as IoU 1.
    """
    with torch.no_grad():
        marked, targets = (logits > 0).flatten(1), (targets > 0.5).flatten(1)
        union = (marked | targets).sum(1)
        true = torch.where(union > 0, (marked & targets).sum(1) / union.clamp(min=1), 1.0)
    return (predicted.float() - true) ** 2


def mask_losses(
    restore: Callable,
    logits: torch.Tensor,
    predicted: torch.Tensor,
    truths: list[torch.Tensor],
    sample_index: list[int],
    void: Sequence[torch.Tensor | None] = (),
) -> dict[str, torch.Tensor]:
    """Losses `bce`, `dice` and `iou`, averaged over masks; 0 where there are none.

    `logits` are `[m, s, s]`, `predicted` IoU is `[m]`. `truths` holds the masks `[n, h, w]` of each
    sample; masks of one size are compared together. Logit m belongs to sample `sample_index[m]`.
    `restore(logits, size)` resizes logits to the size of an image (a method of the decoder). `void`
    holds pixels `[h, w]` of each sample that no loss counts, or None.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for m, owner in enumerate(sample_index):
        height, width = truths[owner].shape[-2:]
        by_size.setdefault((height, width), []).append(m)
    sums = {name: logits.sum() * 0.0 for name in ("bce", "dice", "iou")}
    for size, mine in by_size.items():
        full = restore(logits[mine], size)
        if any(void[sample_index[m]] is not None for m in mine if void):
            hidden = [void[sample_index[m]] for m in mine]
            blank = torch.zeros(size, dtype=torch.bool, device=full.device)
            # sure background where the truth is background: no loss, and no gradient
            full = full.masked_fill(torch.stack([blank if h is None else h for h in hidden]), SURE)
        true = torch.cat([truths[i] for i in dict.fromkeys(sample_index[m] for m in mine)])
        sums["bce"] = sums["bce"] + bce(full, true).sum()
        sums["dice"] = sums["dice"] + dice(full, true).sum()
        sums["iou"] = sums["iou"] + iou_error(predicted[mine], full, true).sum()
    return {name: value / max(len(sample_index), 1) for name, value in sums.items()}


def painting(
    canvas: torch.Tensor,
    truth: torch.Tensor,
    masked: torch.Tensor,
    valid: torch.Tensor | None = None,
    beta: float = 0.01,
) -> torch.Tensor:
    """SegGPT's loss: smooth L1 of painted colours `[n, 3, h, w]`, a scalar.

    It is averaged over what was masked and is valid: `masked` and `valid` are `[n, h, w]`, and
    `valid` may hold weights.
    """
    counted = masked[:, None].expand_as(canvas).to(canvas)
    counted = counted if valid is None else counted * valid[:, None]
    return (
        F.smooth_l1_loss(canvas, truth, reduction="none", beta=beta) * counted
    ).sum() / counted.sum()
