"""LabelMe or ReasonSeg: X.json beside the image X.jpg."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonseg.datasets.layouts.base import PICTURES, Entry, read_json
from reasonseg.errors import InputError
from reasonseg.structures.polygons import paint


def entries(root: Path) -> list[Entry]:
    """One entry for each label of each image, or for each of its texts where it has texts."""
    found = []
    for file in sorted(root.rglob("*.json")):
        tree = read_json(file)
        if not isinstance(tree, dict) or not isinstance(tree.get("shapes"), list):
            continue
        picture = next(
            (p for p in (file.with_suffix(s) for s in PICTURES) if p.is_file()),
            file.with_suffix(".jpg"),
        )
        texts = tree.get("text") or []
        labels = dict.fromkeys(
            str(s.get("label", "")) for s in tree["shapes"] if isinstance(s, dict)
        )
        wanted = {t.strip(): None for t in ([texts] if isinstance(texts, str) else texts)} or {
            label: label
            for label in labels
            if label.lower() != "flag" and "ignore" not in label.lower()
        }
        for text, label in wanted.items():

            def masks(size, label=label, tree=tree, file=file):
                shapes = [s for s in tree["shapes"] if label is None or s.get("label") == label]
                return [paint([as_polygon(s, str(file)) for s in shapes], size, str(file)) == 1]

            found.append(Entry(picture, f"the {label}" if label else text, (label or text,), masks))
    return found


def as_polygon(shape: dict, place: str) -> dict:
    """A LabelMe shape as a polygon: a polygon, a rectangle or a circle (64 points).

    Raises `InputError` naming `place` for lines, points and painted masks.
    """
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind == "polygon":
        return shape
    if kind not in ("rectangle", "circle") or not isinstance(points, list) or len(points) != 2:
        raise InputError(f"{place}: a shape is a {kind}; draw polygons, rectangles or circles")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return {**shape, "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
    radius, turn = np.hypot(x1 - x0, y1 - y0), np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return {
        **shape,
        "points": np.stack([x0 + radius * np.cos(turn), y0 + radius * np.sin(turn)], 1).tolist(),
    }
