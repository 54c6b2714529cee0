"""What is asked: a `Query` about an image, with words, annotated references, points and boxes.

*image* uint8 RGB `[h, w, 3]` · *mask* bool `[h, w]` · *score* 0..1 · *size* `(height, width)` ·
*box* `(x0, y0, x1, y1)` pixels · *point* `(x, y, 1 or 0)` pixels, 1 on the thing and 0 off it.
Axis letters elsewhere: h w height and width, b batch, n masks, k tokens per mask, d width,
t text length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import read_image, read_mask

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]

MAX_WORDS = 2000  # more than any model here can read; refused before it costs a forward pass


def _checked_image(image: Any, name: str) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"{name} must be uint8 RGB [h, w, 3], got {image.dtype} {list(image.shape)}; "
            "reasonseg.Query.open reads files"
        )
    return image


def _checked_mask(mask: Any, image: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2:
        raise InputError(
            f"{name} must be bool [h, w], got {mask.dtype} {list(mask.shape)}; compare it with a "
            "threshold"
        )
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"{name} is {mask.shape[0]}x{mask.shape[1]}, its image "
            f"{image.shape[0]}x{image.shape[1]}; resize one"
        )
    return mask


def _checked_boxes(boxes: Sequence, image: np.ndarray, name: str) -> tuple[Box, ...]:
    height, width = image.shape[:2]
    checked = []
    for box in boxes:
        try:
            x0, y0, x1, y1 = (float(c) for c in box)
        except (TypeError, ValueError):
            raise InputError(f"{name}: a box is x0,y0,x1,y1 in pixels, got {box!r}") from None
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(
                f"{name}: box {box!r} does not lie in the {width}x{height} image with x0 < x1 and "
                "y0 < y1"
            )
        checked.append((x0, y0, x1, y1))
    return tuple(checked)


def _checked_points(points: Sequence, image: np.ndarray, name: str) -> tuple[Point, ...]:
    height, width = image.shape[:2]
    checked = []
    for point in points:
        try:
            x, y, on = (*point, 1)[:3]
            x, y, on = float(x), float(y), int(on)
        except (TypeError, ValueError):
            raise InputError(
                f"{name}: a point is x,y or x,y,1 or x,y,0 in pixels, got {point!r}"
            ) from None
        if not (0 <= x < width and 0 <= y < height) or on not in (0, 1):
            raise InputError(
                f"{name}: point {point!r} must lie in the {width}x{height} image, its third "
                "number 1 or 0"
            )
        checked.append((x, y, on))
    return tuple(checked)


@dataclass
class Reference:
    """An annotated image: what to look for, shown. One of `mask`, `boxes`, `points`, `scribble`
    marks it.

    `weight` is how much it counts beside others, `name` what answers call it. Raises `InputError`
    where shapes disagree or not exactly one annotation is given.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    boxes: Sequence[Box] = ()
    points: Sequence[Point] = ()
    scribble: np.ndarray | None = None
    label: str | None = None
    weight: float = 1.0
    name: str = ""

    def __post_init__(self):
        self.image = _checked_image(self.image, "Reference.image")
        if not self.weight > 0:
            raise InputError(f"Reference.weight must be above 0, got {self.weight!r}")
        given = [
            self.mask is not None,
            len(self.boxes) > 0,
            len(self.points) > 0,
            self.scribble is not None,
        ]
        if sum(given) != 1:
            raise InputError(
                f"Reference needs one of mask, boxes, points, scribble; got {sum(given)}"
            )
        if self.mask is not None:
            self.mask = _checked_mask(self.mask, self.image, "Reference.mask")
        if self.scribble is not None:
            self.scribble = _checked_mask(self.scribble, self.image, "Reference.scribble")
        self.boxes = _checked_boxes(self.boxes, self.image, "Reference.boxes")
        self.points = _checked_points(self.points, self.image, "Reference.points")

    @classmethod
    def open(cls, image: str | Path, mask: str | Path, label: str | None = None) -> Reference:
        """Reads an image file and a mask file (anything not black is the thing)."""
        return cls(read_image(image), mask=read_mask(mask), label=label)


@dataclass
class Query:
    """A question about an image: words, examples, places, or any of them together.

    `history` holds earlier turns as (question, answer text). Raises `InputError` where a field is
    malformed or where nothing is asked.
    """

    image: np.ndarray
    text: str = ""
    references: Sequence[Reference] = ()
    points: Sequence[Point] = ()
    boxes: Sequence[Box] = ()
    previous: np.ndarray | None = None
    history: Sequence[tuple[str, str]] = ()

    def __post_init__(self):
        self.image = _checked_image(self.image, "Query.image")
        if not isinstance(self.text, str):
            raise InputError(f"Query.text must be a string, got {type(self.text).__name__}")
        if not (self.text.strip() or self.references or len(self.points) or len(self.boxes)):
            raise InputError("nothing is asked: give a text, a reference, a point or a box")
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise InputError(
                "Query.text holds half a character (a lone surrogate); send valid Unicode"
            ) from None
        if (words := len(self.text.split())) > MAX_WORDS:
            raise InputError(f"the text has {words} words; at most {MAX_WORDS} are read")
        for reference in self.references:
            if not isinstance(reference, Reference):
                raise InputError(
                    f"Query.references must hold Reference objects, got {type(reference).__name__}"
                )
        self.points = _checked_points(self.points, self.image, "Query.points")
        self.boxes = _checked_boxes(self.boxes, self.image, "Query.boxes")
        if self.previous is not None:
            self.previous = _checked_mask(self.previous, self.image, "Query.previous")

    @classmethod
    def open(cls, path: str | Path, text: str = "", **fields) -> Query:
        """A query about an image file, as a person sees it (EXIF applied). Raises `InputError`
        if it cannot be read.
        """
        return cls(read_image(path), text, **fields)

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the image."""
        return self.image.shape[0], self.image.shape[1]
