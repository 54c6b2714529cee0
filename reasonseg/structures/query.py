"""The question to a model: a `Query` about an image, with text, reference images, points and boxes.

Conventions of the package: *image* uint8 RGB `[h, w, 3]` · *mask* bool `[h, w]` · *score* 0..1 ·
*size* `(height, width)` · *box* `(x0, y0, x1, y1)` pixels · *point* `(x, y, 1 or 0)` pixels, 1 on
the object and 0 off it. The origin is the top left corner. Axis letters: h and w height and width,
b batch, n masks, k tokens per mask, d embedding width, t text length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import read_image
from reasonseg.structures.mask_values import read_mask

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]

MAX_WORDS = 2000  # more than any model here can read; refused before a forward pass
EDGE = 1.0  # pixels by which boxes and points may lie outside; they are moved to the border


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
        near = -EDGE <= x0 < x1 <= width + EDGE and -EDGE <= y0 < y1 <= height + EDGE
        if near:  # a box on the border that was rounded up
            x0, y0 = min(max(x0, 0.0), width), min(max(y0, 0.0), height)
            x1, y1 = min(x1, float(width)), min(y1, float(height))
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
        if -EDGE <= x < width + EDGE and -EDGE <= y < height + EDGE:
            x = min(max(x, 0.0), float(np.nextafter(width, 0)))
            y = min(max(y, 0.0), float(np.nextafter(height, 0)))
        if not (0 <= x < width and 0 <= y < height) or on not in (0, 1):
            raise InputError(
                f"{name}: point {point!r} must lie in the {width}x{height} image, its third "
                "number 1 or 0"
            )
        checked.append((x, y, on))
    return tuple(checked)


@dataclass
class Reference:
    """An annotated reference image: an example of what to segment.

    Exactly one of `mask`, `boxes`, `points` and `scribble` is given. Raises `InputError` where
    shapes disagree, where not exactly one is given, or where the weight is not above 0.

    Attributes:
        image: uint8 RGB `[h, w, 3]`.
        mask: bool `[h, w]`, True on the object.
        boxes: `(x0, y0, x1, y1)` in pixels, x0 < x1 and y0 < y1, inside the image.
        points: `(x, y, 1 or 0)` in pixels, 1 on the object and 0 off it.
        scribble: bool `[h, w]`, True on a line drawn over the object.
        label: A name of the object, for models that read it.
        weight: How much this reference counts relative to the others; above 0.
        name: The name of this reference in answers, such as its file name.
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
        """Reads a reference image and its mask from files.

        Raises `InputError` where a file cannot be read or the sizes differ.

        Args:
            image: Path of the image file.
            mask: Path of the mask file, in the size of the image. Every pixel that is not black
                belongs to the object.
            label: A name of the object.

        Returns:
            The reference.
        """
        return cls(read_image(image), mask=read_mask(mask), label=label)


@dataclass
class Query:
    """A question about an image: text, reference images, points and boxes, alone or together.

    Raises `InputError` where a field is malformed, where the text is too long, or where text,
    references, points and boxes are all empty.

    Attributes:
        image: uint8 RGB `[h, w, 3]`.
        text: The question; at most `MAX_WORDS` words.
        references: Annotated reference images.
        points: `(x, y, 1 or 0)` in pixels, 1 on the object and 0 off it.
        boxes: `(x0, y0, x1, y1)` in pixels, x0 < x1 and y0 < y1, inside the image.
        previous: bool `[h, w]`, the mask that points and boxes correct, or None.
        history: Earlier turns about this image as (question, answer text), the oldest first.
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
        """Reads an image file and makes a query about it.

        Raises `InputError` where the file cannot be read.

        Args:
            path: Path of the image file. EXIF rotation is applied.
            text: The question.
            **fields: The other fields of `Query`.

        Returns:
            The query.
        """
        return cls(read_image(path), text, **fields)

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]


def common_label(references: Sequence[Reference]) -> str | None:
    """The label that all references share, or None."""
    labels = {(r.label or "").strip() for r in references}
    return labels.pop() or None if len(labels) == 1 else None
