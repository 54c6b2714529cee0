"""What image encoders give: features of a batch that only their own decoder reads, and patch
features to compare images by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reasonseg.nn.image_processor import ImageProcessor


@dataclass
class Features:
    """Encoded images: `embedding` `[b, d, g, g]` and further maps `[b, ...]` that only their own
    decoder understands.
    """

    embedding: torch.Tensor
    more: tuple[torch.Tensor, ...] = ()

    def __getitem__(self, index) -> Features:
        # the gradient of plain indexing adds up in any order, this one's always alike
        if isinstance(index, torch.Tensor):
            return Features(
                self.embedding.index_select(0, index),
                tuple(m.index_select(0, index) for m in self.more),
            )
        return Features(self.embedding[index], tuple(m[index] for m in self.more))

    def clone(self) -> Features:
        """A copy with storage of its own."""
        return Features(self.embedding.clone(), tuple(m.clone() for m in self.more))

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.embedding.nbytes + sum(m.nbytes for m in self.more)

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """Several as one batch."""
        more = zip(*(p.more for p in parts), strict=True)
        return Features(torch.cat([p.embedding for p in parts]), tuple(torch.cat(m) for m in more))


@dataclass(frozen=True)
class PatchEncoder:
    """A vision tower that is asked for patch features, to compare images by.

    `encode` takes uint8 `[h, w, 3]` images and gives `[b, grid * grid, width]`. `module` is what it
    runs, by whose weights caches know it; `image_processor` says how images enter.
    """

    module: nn.Module
    encode: Callable[[list[np.ndarray]], torch.Tensor]
    image_processor: ImageProcessor
    grid: int
    width: int
