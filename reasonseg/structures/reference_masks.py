"""The mask of a reference image, whatever its annotation is: mask, boxes, points or scribble."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reasonseg.errors import InputError
from reasonseg.structures.query import Reference

DIMMED = 0.35  # brightness factor outside the mask, where a reference is drawn
DISC = 0.03  # radius of a point, as a fraction of the longer side of the image
STROKE = 0.01  # how far a scribble is widened, as a fraction of the longer side


def region(reference: Reference) -> np.ndarray:
    """The mask of a reference as bool `[h, w]`.

    Boxes are filled, points become discs, and a scribble is widened. Raises `InputError` where
    nothing is marked.
    """
    if reference.mask is not None:
        marked, what = reference.mask, "mask"
    elif len(reference.boxes):
        marked, what = _boxes(reference), "boxes"
    elif reference.scribble is not None:
        marked, what = _widened(reference.scribble), "scribble"
    else:
        marked, what = _points(reference), "points"
    if not marked.any():
        raise InputError(f"Reference.{what} marks nothing; mark at least one pixel of the object")
    return marked


def drawn(reference: Reference) -> np.ndarray:
    """The image of a reference, uint8 `[h, w, 3]`, darkened outside its mask.

    For models that read several images.
    """
    light = np.where(region(reference), 1.0, DIMMED)[..., None]
    return (reference.image * light).astype(np.uint8)


def _boxes(reference: Reference) -> np.ndarray:
    marked = np.zeros(reference.image.shape[:2], bool)
    for x0, y0, x1, y1 in reference.boxes:
        marked[
            int(y0) : max(int(np.ceil(y1)), int(y0) + 1),
            int(x0) : max(int(np.ceil(x1)), int(x0) + 1),
        ] = True
    return marked


def _points(reference: Reference) -> np.ndarray:
    """Discs at the points on the object, minus the discs at the points off it."""
    height, width = reference.image.shape[:2]
    canvas = Image.new("1", (width, height))
    pen, r = ImageDraw.Draw(canvas), max(DISC * max(height, width), 0.5)
    # points off the object are drawn last, so they win
    for x, y, on in sorted(reference.points, key=lambda p: -p[2]):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=int(on))
    return np.array(canvas, bool)


def _widened(scribble: np.ndarray) -> np.ndarray:
    """Every pixel within `STROKE` of the scribble."""
    reach = round(STROKE * max(scribble.shape))
    picture = Image.fromarray(scribble.astype(np.uint8))
    return np.array(picture.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
