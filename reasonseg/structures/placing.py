"""Places annotations on their image where the two have different sizes.

An annotation was made on a picture of some size. Where that is not the size of the image as it is
shown, it is scaled if one number explains the difference (the image was resized), or turned if the
EXIF orientation explains it (the annotation tool ignored EXIF). All else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import ORIENTATION, open_image

SWAPS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
TOLERANCE = 0.015  # by which the aspect ratios of a resized image may differ
Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Frame:
    """The size of an image as it is shown (height, width), and its EXIF orientation (1..8)."""

    size: Size
    orientation: int = 1

    @classmethod
    def of(cls, source: str | Path | bytes, name: str = "the image") -> Frame:
        """The frame of an image file. Raises `InputError` as `open_image` does."""
        with open_image(source, name=name, decode=False) as picture:
            turn = picture.getexif().get(ORIENTATION, 1)
            width, height = picture.size
        turn = turn if turn in range(1, 9) else 1
        return cls((width, height) if turn in SWAPS else (height, width), turn)

    @property
    def stored(self) -> Size:
        """The size of the pixels in the file, before the EXIF orientation is applied."""
        height, width = self.size
        return (width, height) if self.orientation in SWAPS else self.size


@dataclass(frozen=True)
class Placing:
    """How an annotation of the size `annotated` lies on an image.

    Masks are drawn on a canvas of the size `canvas`, from points that `points` scales, and turned
    by `finished`.
    """

    annotated: Size
    canvas: Size
    turn: int = 1

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points `[n, 2]` (x, y) of the annotation, on the canvas."""
        if self.annotated == self.canvas:
            return points
        (height, width), (rows, columns) = self.annotated, self.canvas
        return points * (columns / width, rows / height)

    def finished(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the canvas, as the image is shown."""
        return np.ascontiguousarray(_turned(mask, self.turn))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask `[h, w]` of the size of the annotation (any type), as the image is shown."""
        if mask.shape != self.canvas:
            rows, columns = (
                np.minimum(((np.arange(n) + 0.5) * (of / n)).astype(int), of - 1)
                for n, of in zip(self.canvas, mask.shape, strict=True)
            )
            mask = mask[rows[:, None], columns[None, :]]
        return self.finished(mask)


def placing(
    annotated: Size | None, frame: Frame, place: str, remark: Callable[[str], None]
) -> Placing:
    """How an annotation lies on an image; `remark` is called where it is scaled or turned.

    Args:
        annotated: The size (height, width) that the annotation was made on; None where it does not
            say, which means that of the image.
        frame: The image.
        place: What errors and remarks call the annotation.
        remark: Called with a sentence.

    Raises:
        InputError: Neither a resize nor the EXIF orientation explains the sizes.
    """
    if annotated is None or annotated == frame.size:
        return Placing(frame.size, frame.size)
    said = f"{place} was made on {annotated[1]}x{annotated[0]}, the image is "
    said += f"{frame.size[1]}x{frame.size[0]}"
    upright, turned = _off(annotated, frame.size), _off(annotated, frame.stored)
    if (
        frame.orientation in SWAPS
        and turned <= TOLERANCE
        and (annotated == frame.stored or turned < upright)
    ):
        how = "turned as its EXIF orientation says"
        remark(f"{said}: {how}" + (", and scaled" if annotated != frame.stored else ""))
        return Placing(annotated, frame.stored, frame.orientation)
    if upright <= TOLERANCE:
        remark(f"{said}: scaled by {frame.size[1] / annotated[1]:.4g}")
        return Placing(annotated, frame.size)
    raise InputError(
        f"{said}; neither one scale nor an EXIF orientation explains that, so export the "
        "annotation again, or resize one"
    )


def _off(a: Size, b: Size) -> float:
    """By how much the aspect ratios of two sizes differ; 0 where one number scales one."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1) if min(*a, *b) > 0 else float("inf")


def _turned(mask: np.ndarray, orientation: int) -> np.ndarray:
    """An array `[h, w]` of a file, turned as its EXIF orientation says."""
    if orientation in SWAPS:
        mask = mask.T
    flip_rows, flip_columns = {
        1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)
    }[orientation]  # fmt: skip
    return mask[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
