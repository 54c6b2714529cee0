"""Counts of pixels that can be added, and the scores of the papers. All scores are 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from reasonseg.errors import InputError

IGNORE = 255  # in a true mask: neither object nor background


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one or more masks.

    `inter` and `union` are those of the object, `back_inter` and `back_union` those of the
    background. `n` is the number of masks. `ious` sums the IoU of each mask (1 where both are
    empty), as in LISA's validation.
    """

    inter: int = 0
    union: int = 0
    back_inter: int = 0
    back_union: int = 0
    ious: float = 0.0
    n: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __radd__(self, other) -> Counts:
        return self if other == 0 else NotImplemented

    @property
    def giou(self) -> float:
        """Mean IoU over masks (gIoU), 0..1."""
        return self.ious / max(self.n, 1)

    @property
    def ciou(self) -> float:
        """Summed intersection over summed union (cIoU), 0..1."""
        return self.inter / self.union if self.union else 0.0

    @property
    def fb_iou(self) -> float:
        """Mean of the IoU of object and background, from summed counts (FB-IoU), 0..1."""
        return (self.inter / max(self.union, 1) + self.back_inter / max(self.back_union, 1)) / 2


def count(mask: np.ndarray, truth: np.ndarray) -> Counts:
    """Counts of one predicted mask, bool `[h, w]`, against a true mask `[h, w]`.

    The true mask is bool, or uint8 with 1 for the object and 255 for ignored pixels. IoU is inter /
    (union + 1e-5), or 1 where the union is empty (LISA, `validate`). Raises `InputError` where the
    shapes differ.
    """
    if mask.shape != truth.shape:
        raise InputError(
            f"the mask is {list(mask.shape)}, its truth {list(truth.shape)}; resize one"
        )
    truth = np.asarray(truth)
    seen = truth != IGNORE if truth.dtype != bool else np.ones(truth.shape, bool)
    # any other value is neither, as in the two-bin histogram of LISA's code
    thing, back = (
        truth == 1,
        truth == 0,
    )
    mask = np.asarray(mask, bool)
    inter = int((mask & thing & seen).sum())
    union = int((mask & seen).sum() + thing.sum()) - inter
    back_inter = int((~mask & back & seen).sum())
    back_union = int((~mask & seen).sum() + back.sum()) - back_inter
    return Counts(inter, union, back_inter, back_union, inter / (union + 1e-5) if union else 1.0, 1)


def mean_iou(by_class: dict[object, Counts]) -> float:
    """Mean over classes of the IoU of their summed counts (mIoU of few-shot segmentation), 0..1.

    Classes without a union count 0.
    """
    return (
        float(np.mean([c.inter / max(c.union, 1) for c in by_class.values()])) if by_class else 0.0
    )


def refusals(
    absent_truth: Sequence[bool], absent_said: Sequence[bool]
) -> tuple[float | None, float | None]:
    """(N-acc, T-acc): shares of absent questions refused, and of present questions not refused.

    Values are 0..1; None where there are no such questions.
    """
    truth, answers = np.asarray(absent_truth, bool), np.asarray(absent_said, bool)
    refused = float(answers[truth].mean()) if truth.any() else None
    answered = float((~answers[~truth]).mean()) if (~truth).any() else None
    return refused, answered
