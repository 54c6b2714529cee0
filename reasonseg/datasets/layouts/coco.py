"""COCO: a .json with images, annotations and categories, and the images in any folder beside it.

Reads the tree of COCO 2017 and the exports of CVAT, Roboflow and others. Where several files
describe the same category of an image, their masks are joined; of files whose names say key points,
backup or copy, only what no other file describes is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.layouts.base import Entry, Scan, key_of, size_of, split_in, split_of
from reasonseg.errors import InputError
from reasonseg.structures.placing import Frame
from reasonseg.structures.polygons import placed_mask

FIRST = ("instances", "_annotations", "annotations")  # starts of names that are read first
COPIES = {"backup", "bak", "copy", "old", "keypoints", "panoptic", "captions", "stuff"}


@dataclass(frozen=True)
class _Image:
    path: Path
    size: tuple[int, int] | None
    problem: str = ""


def entries(scan: Scan) -> list[Entry]:
    """One entry for each category of each image; its annotations together are the mask.

    Raises `InputError` where an annotation names an image or category that does not exist.
    """
    found: dict[tuple[Path, str], Entry] = {}
    described: set[Path] = set()
    for file in sorted(scan.ending(".json"), key=_order):
        tree = scan.json(file)
        if not isinstance(tree, dict) or not {"images", "annotations"} <= tree.keys():
            continue
        copy = _is_copy(file)
        mine, left = _of_file(scan, file, tree), 0
        if copy:  # of what other files describe, nothing is taken twice
            kept = [entry for entry in mine if entry.picture not in described]
            mine, left = kept, len(mine) - len(kept)
        for entry in mine:
            described.add(entry.picture)
            key = entry.picture, entry.text
            found[key] = _joined(found[key], entry) if key in found else entry
        if left:
            scan.say(f"{file}: {left} masks are left out; another file describes the same images")
    return list(found.values())


def _joined(one: Entry, other: Entry) -> Entry:
    """One entry of two about the same thing in the same image: their masks together."""

    def masks(frame: Frame) -> list[np.ndarray]:
        return [np.any([*one.masks(frame), *other.masks(frame)], 0)]

    return replace(
        one,
        masks=masks,
        results=(*one.results, *other.results),
        problem=one.problem or other.problem,
    )


def _order(file: Path) -> tuple[bool, int, Path]:
    name = file.stem.lower()
    rank = next((k for k, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))
    return _is_copy(file), rank, file


def _is_copy(file: Path) -> bool:
    """Whether a file repeats what others say, by the words of its name."""
    return bool(COPIES & set(re.split(r"[^a-z0-9]+", file.stem.lower())))


def _of_file(scan: Scan, file: Path, tree: dict) -> list[Entry]:
    lists = {key: tree.get(key) or [] for key in ("images", "annotations", "categories")}
    for key, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise InputError(f"{file}: {key} is not a list of objects")
    if not any("segmentation" in a or "bbox" in a for a in lists["annotations"]):
        return []  # captions, panoptic, or nothing
    names = _names(file, lists["categories"])
    images = _images(scan, file, lists["images"])
    groups: dict[tuple[str, str], list[dict]] = {}
    ids: dict[str, list[str]] = {}  # of the categories of one name
    for key, name in names.items():
        ids.setdefault(name, []).append(key)
    for number, a in enumerate(lists["annotations"]):
        image, category = key_of(a.get("image_id")), key_of(a.get("category_id"))
        if image not in images or category not in names:
            missing = (
                f"image {a.get('image_id')!r}"
                if image not in images
                else f"category {a.get('category_id')!r}"
            )
            raise InputError(f"{file}, annotation {a.get('id', number)}: {missing} does not exist")
        groups.setdefault((image, names[category]), []).append(a)
    split = split_of(_subset(scan, file)) or split_in(file, scan.root)
    return [
        replace(
            _entry(scan, file, images[image], label, members, split),
            results=tuple((image, category) for category in ids[label]),
        )
        for (image, label), members in sorted(groups.items())
    ]


def _names(file: Path, categories: list[dict]) -> dict[str, str]:
    """The category names by id. Raises `InputError` where one id has two names."""
    names: dict[str, str] = {}
    for number, category in enumerate(categories):
        key, name = key_of(category.get("id")), category.get("name")
        if key is None:
            raise InputError(f"{file}, category {number}: its id is {category.get('id')!r}")
        said = str(name) if isinstance(name, int | str) and str(name).strip() else f"category {key}"
        if names.setdefault(key, said) != said:
            raise InputError(f"{file}: category {key} has two names, {names[key]!r} and {said!r}")
    return names


def _images(scan: Scan, file: Path, images: list[dict]) -> dict[str, _Image]:
    """The images by id. Raises `InputError` where one id has two files."""
    subset, root, beside = _subset(scan, file), scan.root, file.parent
    near = (beside, beside / "images", root, root / "images", root / subset)
    near += (root / "images" / subset, beside.parent / subset, beside.parent / "images" / subset)
    found: dict[str, _Image] = {}
    names: dict[str, Any] = {}
    for number, image in enumerate(images):
        key, name = key_of(image.get("id")), image.get("file_name")
        place = f"{file}, image {image.get('id', number)!r}"
        if key is None:
            raise InputError(f"{place}: it has no id")
        if names.setdefault(key, name) != name:
            raise InputError(f"{file}: image {key} has two files, {names[key]!r} and {name!r}")
        if not isinstance(name, str) or not name.strip():
            found[key] = _Image(root / f"image {key}", None, f"{place}: it has no file_name")
            continue
        try:
            size = size_of(image.get("height"), image.get("width"), place)
            found[key] = _Image(scan.picture(name, *near, subset=subset), size)
        except InputError as error:
            found[key] = _Image(root / name.replace("\\", "/"), None, str(error))
    return found


def _subset(scan: Scan, file: Path) -> str:
    """The subset that a file describes: `train2017`, `default`, or the name of its folder."""
    name = file.stem
    for start in ("instances_", "annotations_", "person_keypoints_"):
        if name.startswith(start):
            return name[len(start) :]
    if name.startswith("_annotations"):
        return file.parent.name if file.parent != scan.root else ""
    return name


def _entry(
    scan: Scan, file: Path, image: _Image, label: str, members: list[dict], split: str
) -> Entry:
    def masks(frame: Frame) -> list[np.ndarray]:
        parts = []
        for a in members:
            place = f"{file}, annotation {a.get('id')}"
            if not a.get("segmentation"):
                what = "only a box" if a.get("bbox") else "neither segmentation nor box"
                raise InputError(f"{place} has {what}; a mask is needed")
            on = scan.placing(_drawn_on(a, image), frame, f"{file}, {image.path.name}")
            parts.append(placed_mask(a["segmentation"], place, on, scan.say))
        return [np.any(parts, 0)]

    return Entry(image.path, f"the {label}", (label,), masks, split=split, problem=image.problem)


def _drawn_on(annotation: dict, image: _Image) -> tuple[int, int] | None:
    """The size that an annotation was drawn on: that of its run lengths, or that of the image."""
    given = annotation["segmentation"]
    first = given[0] if isinstance(given, list) and given else given
    size = first.get("size") if isinstance(first, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(s) is int and s > 0 for s in size):
        return size[0], size[1]
    return image.size
