"""Pairs: `images/` and `masks/`.

A mask is a PNG with the name of its image, binary or indexed; or there is one folder of masks per
label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonseg.datasets.layouts.base import PICTURES, Entry, indexed_classes, read_json
from reasonseg.errors import InputError
from reasonseg.structures.images import open_image, read_mask, read_values


def entries(root: Path) -> list[Entry]:
    """One entry for each class of each mask. Raises `InputError` for a mask without an image."""
    pictures = {
        p.stem: p for p in sorted((root / "images").glob("*")) if p.suffix.lower() in PICTURES
    }
    names = read_json(root / "labels.json") if (root / "labels.json").is_file() else {}
    flat = [file for file in sorted((root / "masks").glob("*.png"))]
    classes = indexed_classes({file: file for file in flat}, bool(names))
    found = []
    for file in sorted((root / "masks").rglob("*.png")):
        if file.stem not in pictures:
            raise InputError(f"{file} has no image of its name in {root / 'images'}")
        label = "" if file.parent == root / "masks" else file.parent.name
        for value in classes.get(file, [None]):
            name = (
                label or names.get(str(value)) or ("thing" if value is None else f"class {value}")
            )

            def masks(size, file=file, value=value):
                return [_marked(file) if value is None else read_values(file) == value]

            found.append(Entry(pictures[file.stem], f"the {name}", (name,), masks))
    return found


def _marked(file: Path) -> np.ndarray:
    """A binary mask: True from half of its largest value on, or where not 0 for values 0 and 1."""
    with open_image(file) as picture:
        values = np.asarray(picture) if picture.mode in ("L", "I", "I;16") else None
    return (
        read_mask(file)
        if values is None or values.max() <= 1
        else values >= (int(values.max()) + 1) // 2
    )
