"""Outputs of image encoders: features for a decoder, and patch features for comparing images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonseg.nn.image_processor import ImageProcessor


@dataclass
class Features:
    """Encoded images in a form that only their own decoder reads.

    `embedding` is `[b, d, g, g]`; `more` are further maps `[b, ...]`.
    """

    embedding: torch.Tensor
    more: tuple[torch.Tensor, ...] = ()

    def __getitem__(self, index) -> Features:
        # the gradient of plain indexing is summed in any order, that of index_select in a fixed one
        if isinstance(index, torch.Tensor):
            return Features(
                self.embedding.index_select(0, index),
                tuple(m.index_select(0, index) for m in self.more),
            )
        return Features(self.embedding[index], tuple(m[index] for m in self.more))

    def clone(self) -> Features:
        """A copy with its own storage."""
        return Features(self.embedding.clone(), tuple(m.clone() for m in self.more))

    @property
    def nbytes(self) -> int:
        """Memory of all maps in bytes."""
        return self.embedding.nbytes + sum(m.nbytes for m in self.more)

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """Several batches as one, in their order."""
        more = zip(*(p.more for p in parts), strict=True)
        return Features(torch.cat([p.embedding for p in parts]), tuple(torch.cat(m) for m in more))


@dataclass(frozen=True)
class PatchEncoder:
    """A vision tower that computes patch features for comparing images.

    - `module`: the module that `encode` runs; caches identify it by its weights.
    - `encode`: computes features `[b, grid * grid, width]` of uint8 `[h, w, 3]` images.
    - `image_processor`: the preprocessing of the images.
    """

    module: nn.Module
    encode: Callable[[list[np.ndarray]], torch.Tensor]
    image_processor: ImageProcessor
    grid: int
    width: int
