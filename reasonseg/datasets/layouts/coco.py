"""COCO: a .json with images, annotations and categories; images beside it or under `images/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonseg.datasets.layouts.base import Entry, read_json
from reasonseg.errors import InputError
from reasonseg.structures.polygons import coco_mask


def entries(root: Path) -> list[Entry]:
    """One entry for each category of each image; its annotations together are the mask.

    Raises `InputError` where an annotation names an image or category that does not exist.
    """
    found = []
    for file in sorted(root.glob("*.json")) + sorted((root / "annotations").glob("*.json")):
        tree = read_json(file)
        if isinstance(tree, dict) and {"images", "annotations", "categories"} <= tree.keys():
            found += _of_file(root, file, tree)
    return found


def _of_file(root: Path, file: Path, tree: dict) -> list[Entry]:
    names = {c["id"]: str(c["name"]) for c in tree["categories"]}
    pictures = {i["id"]: i["file_name"] for i in tree["images"]}
    groups: dict[tuple[int, str], list[dict]] = {}
    for number, a in enumerate(tree["annotations"]):
        image, category = a.get("image_id"), a.get("category_id")
        if image not in pictures or category not in names:
            missing = f"image {image}" if image not in pictures else f"category {category}"
            raise InputError(f"{file}, annotation {a.get('id', number)}: {missing} does not exist")
        groups.setdefault((image, names[category]), []).append(a)
    entries = []
    for (image, label), members in sorted(groups.items()):
        places = (root / pictures[image], root / "images" / pictures[image])

        def masks(size, members=members):
            parts = [
                coco_mask(m.get("segmentation"), size, f"{file}, annotation {m.get('id')}")
                for m in members
            ]
            return [np.any(parts, 0)]

        picture = next((p for p in places if p.is_file()), places[0])
        entries.append(Entry(picture, f"the {label}", (label,), masks))
    return entries
