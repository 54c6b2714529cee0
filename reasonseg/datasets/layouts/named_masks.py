"""PNG masks that `labels.json` names, as `reasonseg export --format png` writes them.

`labels.json` is `{"a-0.png": {"image": "a.jpg", "label": "cup"}, ...}`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonseg.datasets.layouts.base import Entry, Scan
from reasonseg.errors import InputError
from reasonseg.structures.mask_values import read_mask
from reasonseg.structures.placing import Frame


def entries(scan: Scan) -> list[Entry]:
    """One entry for each label of each image; its masks together are the mask."""
    file = scan.root / "labels.json"
    tree = scan.json(file) if file.is_file() else None
    if not isinstance(tree, dict) or not tree:
        return []
    groups: dict[tuple[str, str], list[Path]] = {}
    for name, about in tree.items():
        if not isinstance(about, dict):
            return []  # names of the classes of `masks/`
        image, label = about.get("image"), about.get("label")
        if not isinstance(image, str) or not isinstance(label, str):
            raise InputError(f"{file}, {name}: expected image and label as strings")
        groups.setdefault((image, label), []).append(scan.root / name)

    def masks(frame: Frame, files: list[Path]) -> list[np.ndarray]:
        found = []
        for mask_file in files:
            found.append(scan.placed(read_mask(mask_file), frame, str(mask_file)))
        return [np.any(found, 0)]

    return [
        Entry(
            scan.picture(image, scan.root),
            f"the {label}",
            (label,),
            lambda frame, files=files: masks(frame, files),
        )
        for (image, label), files in groups.items()
    ]
