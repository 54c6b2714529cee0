"""LabelMe or ReasonSeg: X.json for the image that its `imagePath` names, or X.jpg beside it."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.layouts.base import PICTURES, Entry, Scan, is_file, size_of, split_in
from reasonseg.errors import InputError
from reasonseg.structures.mask_values import read_mask
from reasonseg.structures.placing import Frame, Placing
from reasonseg.structures.polygons import CUT, checked_points, outside, paint

CIRCLE = 64  # points of a circle


def entries(scan: Scan) -> list[Entry]:
    """One entry for each label of each image, or for each of its texts where it has texts."""
    found = []
    for file in scan.ending(".json"):
        tree = scan.json(file)
        if not isinstance(tree, dict) or not isinstance(tree.get("shapes"), list):
            continue
        picture, data = _picture(scan, file, tree)
        named = [_label(s).lower() for s in tree["shapes"] if isinstance(s, dict)]
        if left := sum(name == "flag" or "ignore" in name for name in named):
            scan.say(f"{file}: {left} shapes with the label flag or ignore are no things")
        for text, label in _wanted(tree).items():
            found.append(
                Entry(
                    picture,
                    f"the {label}" if label is not None else text,
                    (label if label is not None else text,),
                    _reader(scan, file, tree, label),
                    data=data,
                    split=split_in(file, scan.root),
                )
            )
    return found


def _wanted(tree: dict) -> dict[str, str | None]:
    """The labels by text; for texts of their own, such as ReasonSeg's, None: all shapes."""
    texts = tree.get("text") or []
    texts = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
    said = {t.strip(): None for t in texts if isinstance(t, str) and t.strip()}
    labels = dict.fromkeys(_label(s) for s in tree["shapes"] if isinstance(s, dict))
    kept = {k: k for k in labels if k.lower() != "flag" and "ignore" not in k.lower()}
    return {**said} or {**kept}


def _label(shape: dict) -> str:
    """The label of a shape as text; numbers are allowed, `null` and other values are named."""
    label = shape.get("label")
    return label if isinstance(label, str) else "null" if label is None else f"{label}"


def _picture(scan: Scan, file: Path, tree: dict) -> tuple[Path, bytes | None]:
    """The image of an annotation, and its bytes where it is inside of the file."""
    named = tree.get("imagePath")
    beside = {p.suffix.lower(): p for p in _siblings(scan, file)}
    if isinstance(named, str) and named.strip():
        path = Path(os.path.normpath(file.parent / named.replace("\\", "/")))
        if is_file(path):
            return path, None
    for suffix in PICTURES:
        if suffix in beside:
            return beside[suffix], None
    inside = tree.get("imageData")
    if isinstance(inside, str) and inside:
        try:
            return file.with_suffix(".json#imageData"), base64.b64decode(inside)
        except (binascii.Error, ValueError):
            scan.say(f"{file}: imageData is not base64 of an image", lost=True)
    if isinstance(named, str) and named.strip():
        try:
            return scan.picture(named, file.parent), None
        except InputError as error:
            scan.say(f"{file}: {error}", lost=True)
    return file.with_suffix(".jpg"), None


def _siblings(scan: Scan, file: Path) -> list[Path]:
    """The files beside a file that have its name, with other endings."""
    return scan.beside.get((file.parent, file.stem), [])


def _reader(scan: Scan, file: Path, tree: dict, label: str | None):
    def masks(frame: Frame) -> list[np.ndarray]:
        shapes = [
            s for s in tree["shapes"] if not isinstance(s, dict) or label in (None, _label(s))
        ]
        nameless = sum(isinstance(s, dict) and s.get("label") is None for s in shapes)
        if nameless:
            raise InputError(f"{file}: {nameless} shapes have the label null; name them")
        size = size_of(tree.get("imageHeight"), tree.get("imageWidth"), str(file))
        on = scan.placing(size, frame, str(file))
        kinds = [s.get("shape_type") if isinstance(s, dict) else "" for s in shapes]
        drawn = [
            _drawn(s, on, str(file)) for s, k in zip(shapes, kinds, strict=True) if k == "mask"
        ]
        outlines = [
            as_polygon(s, str(file), on) for s, k in zip(shapes, kinds, strict=True) if k != "mask"
        ]
        far = max([outside(np.array(o["points"]), on.canvas) for o in outlines], default=0)
        if far > CUT:
            scan.say(f"{file}: shapes reach {far:.0f} pixels out of the image, which are cut off")
        values = paint(outlines, on.canvas, str(file)) == 1
        return [on.finished(np.any([values, *drawn], 0))]

    return masks


def as_polygon(shape: Any, place: str, on: Placing) -> dict:
    """A LabelMe shape as a polygon on the canvas: a polygon, a rectangle or a circle.

    Raises `InputError` naming `place` for lines and points, and for malformed shapes.
    """
    if not isinstance(shape, dict):
        raise InputError(f"{place}: a shape is {shape!r:.40}, not an object")
    kind, given = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in ("polygon", "rectangle", "circle"):
        raise InputError(f"{place}: a shape is a {kind}; draw polygons, rectangles or circles")
    if not isinstance(given, list):
        raise InputError(f"{place}: a {kind} has no list of points")
    try:
        points = checked_points(given, on.annotated)
    except ValueError as error:
        raise InputError(f"{place}: a {kind}: {error}") from None
    if kind != "polygon":
        if len(points) != 2:
            raise InputError(f"{place}: a {kind} has {len(points)} points; it needs two")
        points = _outline(kind, points)
    return {**shape, "label": _label(shape), "points": on.points(points).tolist()}


def _outline(kind: str, points: np.ndarray) -> np.ndarray:
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    radius, turn = np.hypot(x1 - x0, y1 - y0), np.linspace(0, 2 * np.pi, CIRCLE, endpoint=False)
    return np.stack([x0 + radius * np.cos(turn), y0 + radius * np.sin(turn)], 1)


def _drawn(shape: dict, on: Placing, place: str) -> np.ndarray:
    """A painted mask: a PNG that lies in the box of its two points."""
    try:
        points = checked_points(shape["points"], on.annotated)
        mask = read_mask(base64.b64decode(shape["mask"]), name=f"{place}, a painted mask")
        left, top = (int(v) for v in points.min(0))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: a painted mask cannot be read ({error!r:.80})") from None
    whole = np.zeros(on.annotated, bool)
    (rows, columns), (height, width) = mask.shape, on.annotated
    y, x = max(top, 0), max(left, 0)
    part = mask[y - top : height - top, x - left : width - left]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    if (rows, columns) != part.shape and mask.sum() != part.sum():
        raise InputError(f"{place}: a painted mask lies outside of the image")
    if on.annotated == on.canvas:
        return whole
    return Placing(on.annotated, on.canvas).mask(whole)
