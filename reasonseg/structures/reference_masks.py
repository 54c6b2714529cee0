"""What a reference marks, as a mask: drawn as it was given, whatever it was given as."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reasonseg.errors import InputError
from reasonseg.structures.query import Reference

DIMMED = 0.35  # of its light is left of what is not marked, where a reference is drawn
DISC = 0.03  # radius of a point, as a fraction of the picture's longer side
STROKE = 0.01  # by how much a scribble is widened


def region(reference: Reference) -> np.ndarray:
    """bool `[h, w]`: the mask, the boxes filled, or discs on the points and a widened scribble.

    Raises `InputError` where nothing is marked.
    """
    if reference.mask is not None:
        marked, what = reference.mask, "mask"
    elif len(reference.boxes):
        marked, what = _boxes(reference), "boxes"
    elif len(reference.points):
        marked, what = _points(reference), "points"
    else:
        marked, what = _widened(reference.scribble), "scribble"
    if not marked.any():
        raise InputError(f"Reference.{what} marks nothing; mark at least one pixel of the thing")
    return marked


def drawn(reference: Reference) -> np.ndarray:
    """uint8 `[h, w, 3]`: the picture with what is not marked dimmed, for models that look at
    several pictures.
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
    """Discs where the thing is, without those where it is not."""
    height, width = reference.image.shape[:2]
    canvas = Image.new("1", (width, height))
    pen, r = ImageDraw.Draw(canvas), max(DISC * max(height, width), 0.5)
    # what is off the thing has the last word
    for x, y, on in sorted(reference.points, key=lambda p: -p[2]):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=int(on))
    return np.array(canvas, bool)


def _widened(scribble: np.ndarray) -> np.ndarray:
    """Every pixel within `STROKE` of the scribble."""
    reach = round(STROKE * max(scribble.shape))
    picture = Image.fromarray(scribble.astype(np.uint8))
    return np.array(picture.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
