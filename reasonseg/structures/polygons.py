"""Draws polygons as masks, pixel for pixel as the tools of the data sets draw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.masks import coco_tools, from_rle
from reasonseg.structures.placing import Placing

THING, IGNORED = 1, 255
CUT = 3  # pixels outside of the image from which a remark says that they are cut off
FAR = 8  # times the larger side of the image: the furthest point that is drawn
FRACTION = 16  # fractional bits of the fixed-point position of an edge


def paint(shapes: Sequence[dict], size: tuple[int, int], place: str) -> np.ndarray:
    """LabelMe polygons drawn as ReasonSeg does: uint8 `[h, w]`, 1 object, 255 ignored, 0 rest.

    Coordinates are truncated to whole pixels; the outline is drawn one pixel wide and filled.
    Larger areas are drawn first, so smaller ones cover them (of equal areas the first covers).
    Shapes labelled `flag` are left out; shapes whose label contains `ignore` get 255. `size` is
    (height, width). Raises `InputError` naming `place` for a malformed shape.
    """
    layers = []
    for number, shape in enumerate(shapes):
        try:
            label, points = str(shape["label"]).lower(), checked_points(shape["points"], size)
            if not len(points):
                raise ValueError("a polygon needs points with finite coordinates")
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{place}, shape {number}: expected a label and points [[x, y], ...] ({error!r})"
            ) from None
        except ValueError as error:
            raise InputError(f"{place}, shape {number}: {error}") from None
        if label == "flag":
            continue
        layer = fill(points, size)
        layers.append((int(layer.sum()), layer, IGNORED if "ignore" in label else THING))
    mask = np.zeros(size, np.uint8)
    for _, layer, value in sorted(layers, key=lambda item: item[0])[::-1]:
        mask[layer] = value
    return mask


def fill(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One polygon `[n, 2]` (x, y) filled with its outline, as bool `[h, w]`.

    Equals `polylines`, then `fillPoly` of OpenCV 4.8, pixel for pixel. Later versions of OpenCV
    round ties of the outline differently, and the published ReasonSeg results were measured with
    this version.
    """
    layer = np.zeros(size, bool)
    corners = [(int(x), int(y)) for x, y in points]
    rows, columns = [np.zeros(0, int)], [np.zeros(0, int)]
    for start, end in zip([corners[-1], *corners[:-1]], corners, strict=True):
        _line(layer, start, end)
        if start[1] != end[1]:
            ys, xs = _edge(start, end, size)
            rows.append(ys)
            columns.append(xs)
    ys, xs = np.concatenate(rows), np.concatenate(columns)
    # in each row, from left to right: fill between edges 1 and 2, 3 and 4, ...
    order = np.lexsort((xs, ys))
    ys, xs = ys[order], xs[order] >> FRACTION
    for y, left, right in zip(ys[::2], xs[::2], xs[1::2], strict=True):
        if right >= 0:
            layer[y, max(left, 0) : right + 1] = True
    return layer


def _edge(
    start: tuple[int, int], end: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that an edge crosses, and its x in each, in fixed point with `FRACTION` bits.

    An edge that leaves the image is computed from its clipped ends.
    """
    height, width = size
    if all(0 <= x < width and 0 <= y < height for x, y in (start, end)):
        half = 1 << (FRACTION - 1)
        (x0, y0), (x1, y1) = _fixed(start, half), _fixed(end, half)
    else:
        clipped = _clipped(start, end, size)[:2]
        ends = clipped if clipped[0][1] != clipped[1][1] else (start, end)
        (x0, y0), (x1, y1) = _fixed(ends[0], 0), _fixed(ends[1], 0)
    slope = _towards_zero(x1 - x0, y1 - y0)
    top, bottom = sorted((start[1], end[1]))
    x = x0 + (top - y0) * slope if start[1] < end[1] else x1 + (top - y1) * slope
    ys = np.arange(max(top, 0), min(bottom, height))
    return ys, x + (ys - top) * slope


def _fixed(point: tuple[int, int], plus: int) -> tuple[int, int]:
    return (point[0] << FRACTION) + plus, point[1]


def _towards_zero(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _line(layer: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draws Bresenham's line with 8-connectivity, from left to right."""
    start, end, visible = _clipped(start, end, layer.shape)
    if not visible:
        return
    if end[0] < start[0]:
        start, end = end, start
    dx, dy = end[0] - start[0], end[1] - start[1]
    long, short = max(dx, abs(dy)), min(dx, abs(dy))
    step = np.arange(long + 1)
    aside = (2 * short * step + long - 1) // (2 * long) if long else step
    down = 1 if dy >= 0 else -1
    across, along = (aside, step) if abs(dy) > dx else (step, aside)
    layer[start[1] + down * along, start[0] + across] = True


def _clipped(start, end, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """A line clipped to the image (Cohen-Sutherland), and whether any of it is inside."""
    (x1, y1), (x2, y2) = start, end
    bottom, right = size[0] - 1, size[1] - 1

    def outside(x, y):
        return (x < 0) + (x > right) * 2 + (y < 0) * 4 + (y > bottom) * 8

    a, b = outside(x1, y1), outside(x2, y2)
    if not a & b and a | b:
        if a & 12:
            border = 0 if a < 8 else bottom
            x1, y1 = x1 + int((border - y1) * (x2 - x1) / (y2 - y1)), border
            a = (x1 < 0) + (x1 > right) * 2
        if b & 12:
            border = 0 if b < 8 else bottom
            x2, y2 = x2 + int((border - y2) * (x2 - x1) / (y2 - y1)), border
            b = (x2 < 0) + (x2 > right) * 2
        if not a & b and a | b:
            if a:
                border = 0 if a == 1 else right
                x1, y1, a = border, y1 + int((border - x1) * (y2 - y1) / (x2 - x1)), 0
            if b:
                border = 0 if b == 1 else right
                x2, y2, b = border, y2 + int((border - x2) * (y2 - y1) / (x2 - x1)), 0
    return (x1, y1), (x2, y2), not a | b


def checked_points(given: Any, size: tuple[int, int]) -> np.ndarray:
    """The points of a polygon, float64 `[n, 2]`, from `[x, y, x, y, ...]` or `[[x, y], ...]`.

    `size` is the (height, width) that they lie on. Raises `ValueError` for what is not a finite
    number, and for points further away than `FAR` times the larger side: drawing code of others
    crashes on these, or takes all memory.
    """
    flat = [v for p in given for v in (p if isinstance(p, list | tuple) else [p])]
    wrong = [v for v in flat if isinstance(v, bool) or not isinstance(v, int | float)]
    if wrong:
        raise ValueError(f"{wrong[0]!r:.40} is not a number")
    if len(flat) % 2:
        raise ValueError(f"{len(flat)} numbers, which are not pairs of x and y")
    far = FAR * max(size)
    bad = next((v for v in flat if not abs(v) <= far), None)  # NaN is not either
    if bad is not None:
        far_off = f"lies far outside of {size[1]}x{size[0]} pixels"
        what = "is not finite" if bad != bad or abs(bad) == float("inf") else far_off
        raise ValueError(f"the coordinate {str(bad)[:12]} {what}")
    return np.array(flat, np.float64).reshape(-1, 2)


def pixels_of(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels `[n, 2]` in which points (x, y) lie, moved into an image of `size` (h, w).

    A hair below a whole number is one that was rounded when it was written.
    """
    return np.clip(np.floor(points + 1e-3), 0, (size[1] - 1, size[0] - 1))


def outside(points: np.ndarray, size: tuple[int, int]) -> float:
    """How far points `[n, 2]` lie outside of an image of `size` (height, width), in pixels."""
    if not len(points):
        return 0.0
    over = points.max(0) - np.array([size[1], size[0]])
    return float(max(-points.min(), over.max(), 0.0))


def coco_mask(segmentation: Any, size: tuple[int, int], place: str) -> np.ndarray:
    """A COCO segmentation as bool `[h, w]`; all False where there is none.

    `size` is (height, width), of the image and of its annotation. Errors are those of
    `placed_mask`.
    """
    if not segmentation:
        return np.zeros(size, bool)
    whole = (size[0], size[1])
    return placed_mask(segmentation, place, Placing(whole, whole), lambda said: None)


def placed_mask(
    segmentation: Any, place: str, on: Placing, remark: Callable[[str], None]
) -> np.ndarray:
    """A COCO segmentation as bool `[h, w]` of the image as it is shown.

    `segmentation` is a list of polygons, one polygon, a run-length encoding, or a list of
    encodings. Parts that overlap count once (the original code adds them up to 2). Parts of fewer
    than three points beside good ones are left out, and `remark` is called. Raises `InputError`
    naming `place` where it is malformed or empty.
    """
    height, width = on.canvas
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if parts and all(isinstance(p, int | float) for p in parts):
        parts = [parts]
    try:
        if parts and all(isinstance(p, dict) for p in parts):
            masks = [from_rle(dict(p)) for p in parts]
            wrong = next((m.shape for m in masks if m.shape != on.annotated), None)
            if wrong is not None:
                raise ValueError(f"its size is {list(wrong)}, not {list(on.annotated)}")
            return on.mask(np.any(masks, 0))
        if not parts or not all(isinstance(p, list) for p in parts):
            raise ValueError("neither polygons nor run lengths")
        points = [on.points(checked_points(p, on.annotated)) for p in parts]
    except (ValueError, InputError) as error:
        raise InputError(f"{place}: not a COCO segmentation: {error}") from None
    if (far := outside(np.concatenate(points), on.canvas)) > CUT:
        remark(f"{place}: it reaches {far:.0f} pixels out of the image, which are cut off")
    good = [p.ravel().tolist() for p in points if len(p) >= 3]
    if not good:
        raise InputError(f"{place}: not a COCO segmentation: a polygon needs three points or more")
    if len(good) < len(points):
        remark(f"{place}: {len(points) - len(good)} parts of fewer than three points are left out")
    coco = coco_tools()
    drawn = coco.decode(coco.frPyObjects(good, height, width))
    return on.finished(np.any(drawn, -1))
