"""Pictures cut into square tiles, as InternVL does, and visual tokens of pictures, whose numbers
differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


class TileFeatures:
    """Visual tokens of several pictures, `[tokens, width]` each, since their numbers differ."""

    def __init__(self, rows: Sequence[Tensor]):
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> TileFeatures:
        if isinstance(index, slice):
            return TileFeatures(self.rows[index])
        return TileFeatures([self.rows[int(i)] for i in index])

    def clone(self) -> TileFeatures:
        """A copy with its own storage."""
        return TileFeatures([row.clone() for row in self.rows])

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(row.nbytes for row in self.rows)

    @staticmethod
    def joined(parts: Sequence[TileFeatures]) -> TileFeatures:
        """Several as one, in their order."""
        return TileFeatures([row for part in parts for row in part.rows])


def grid_tiles(
    size: tuple[int, int], side: int, most: int
) -> list[tuple[int, int, int, int] | None]:
    """The tiles of a picture of `size` (height, width): boxes in the picture resized to the grid,
    and None for the whole picture, which comes last where there are several.

    InternVL's rule: of all grids of at most `most` squares the one whose shape is closest; of two
    that are as close, the later one where the picture has more than half as many pixels.
    """
    columns, rows = best_grid(size, side, most)
    tiles: list[tuple[int, int, int, int] | None] = [
        (x * side, y * side, (x + 1) * side, (y + 1) * side)
        for y in range(rows)
        for x in range(columns)
    ]
    return [*tiles, None] if len(tiles) > 1 else tiles


def best_grid(size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """(columns, rows) for a picture of `size` (height, width)."""
    height, width = size
    grids = sorted(
        {(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most},
        key=lambda grid: grid[0] * grid[1],
    )
    best, least = (1, 1), float("inf")
    for columns, rows in grids:
        away = abs(width / height - columns / rows)
        if away < least:
            best, least = (columns, rows), away
        elif away == least and width * height > 0.5 * side * side * columns * rows:
            best = (columns, rows)
    return best


def tiles_of(image: np.ndarray, side: int, most: int) -> list[np.ndarray]:
    """A uint8 `[h, w, 3]` image as squares `[side, side, 3]`, the whole picture last."""
    columns, rows = best_grid(image.shape[:2], side, most)
    picture = Image.fromarray(image)
    large = picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    return [
        np.asarray(
            large.crop(box) if box else picture.resize((side, side), Image.Resampling.BICUBIC)
        )
        for box in grid_tiles(image.shape[:2], side, most)
    ]
