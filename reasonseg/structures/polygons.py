"""Draws polygons as masks, pixel for pixel as the tools of the data sets draw them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.masks import coco_tools

THING, IGNORED = 1, 255
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
            label, points = (
                str(shape["label"]).lower(),
                np.array(shape["points"], float).reshape(-1, 2),
            )
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{place}, shape {number}: expected a label and points [[x, y], ...]"
            ) from None
        if label == "flag":
            continue
        if not len(points) or not np.isfinite(points).all():
            raise InputError(
                f"{place}, shape {number}: a polygon needs points with finite coordinates"
            )
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


def coco_mask(segmentation, size: tuple[int, int], place: str) -> np.ndarray:
    """A COCO segmentation as bool `[h, w]`; all False where there is none.

    `segmentation` is a list of polygons, a run-length encoding, or a list of encodings. Parts that
    overlap count once (the original code adds them up to 2). `size` is (height, width). Raises
    `InputError` naming `place` where it is malformed.
    """
    coco = coco_tools()
    height, width = size
    if not segmentation:
        return np.zeros(size, bool)
    try:
        parts = [segmentation] if isinstance(segmentation, dict) else list(segmentation)
        if isinstance(parts[0], dict):
            parts = [
                {
                    **p,
                    "counts": p["counts"].encode() if isinstance(p["counts"], str) else p["counts"],
                }
                for p in parts
            ]
            if any(isinstance(p["counts"], list) for p in parts):
                parts = [
                    coco.frPyObjects(p, height, width) if isinstance(p["counts"], list) else p
                    for p in parts
                ]
        else:
            short = next((p for p in parts if len(p) < 6 or len(p) % 2), None)
            if short is not None:
                raise ValueError(
                    f"a polygon of {len(short)} numbers; it needs three points or more"
                )
            parts = coco.frPyObjects(parts, height, width)
        drawn = coco.decode(parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{place}: not a COCO segmentation: {error}") from None
    if drawn.shape[:2] != tuple(size):
        raise InputError(
            f"{place}: the segmentation is {list(drawn.shape[:2])}, its image {list(size)}"
        )
    return np.any(drawn.reshape(height, width, -1), -1)
