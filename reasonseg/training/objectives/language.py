"""Objective of LISA and of fine-tuning: true answers and their masks, through the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.sample import Sample
from reasonseg.training.objectives.base import Objective, Samples


class Language(Objective):
    """The losses of `Segmenter.loss`: text, and bce, dice and predicted IoU of masks.

    It has no options.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return Samples(data.config.training(length, seed))

    def collate(self, items: list[Sample]) -> dict:
        return {"samples": items}

    def counts(self, batch: dict[str, Any]) -> dict[str, int]:
        """The numbers of answer tokens and masks in a batch."""
        worded = [s for s in batch["samples"] if s.query.text.strip()]
        backbone = self.segmenter.language()[0] if worded else None
        tokens = sum(len(backbone.answer_ids(s.truth.text)) for s in worded) if backbone else 0
        return {"tokens": tokens, "masks": sum(len(s.truth.masks) for s in batch["samples"])}

    def forward(self, batch: dict[str, Any], counts: dict | None = None) -> dict[str, torch.Tensor]:
        return self.segmenter.loss(batch["samples"], counts)


OBJECTIVE = Language
