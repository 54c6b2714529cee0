"""Pairs: `images/` and `masks/`, in the folder or in subfolders such as `train/`.

A mask is a file with the name of its image, binary or with a value per class, which `labels.json`
may name; or there is one folder of masks per label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonseg.datasets.layouts.base import PICTURES, Entry, Scan, split_of
from reasonseg.errors import InputError
from reasonseg.structures.mask_values import Meaning, mask_values, named_values
from reasonseg.structures.placing import Frame

ENDS = ("_mask", "-mask", "_masks", "_seg", "_label", "_labels")  # of masks' names
LISTED = 3  # names that a remark lists


def entries(scan: Scan) -> list[Entry]:
    """One entry for each class of each mask."""
    found = []
    for masks in sorted({f.parents[i] for f in scan.files for i in _depth(scan, f)}):
        images = masks.parent / "images"
        if masks.name == "masks" and images.is_dir():
            found += _of_folders(scan, images, masks)
    return found


def _depth(scan: Scan, file: Path) -> range:
    return range(len(file.relative_to(scan.root).parts) - 1)


def _of_folders(scan: Scan, images: Path, masks: Path) -> list[Entry]:
    pictures: dict[str, list[Path]] = {}
    for file in scan.ending(*PICTURES, under=images):
        if file.parent == images:
            pictures.setdefault(file.stem, []).append(file)
    names = _names(scan, masks.parent)
    groups: dict[str, list[tuple[Path, list[Path]]]] = {}
    foreign = []
    for file in scan.ending(*PICTURES, under=masks):
        stem = next((s for s in _stems(file) if s in pictures), None)
        label = "" if file.parent == masks else file.parent.relative_to(masks).parts[0]
        if stem is None:
            foreign.append(file)
        else:
            groups.setdefault(label, []).append((file, pictures[stem]))
    _say_unpaired(scan, images, pictures, groups, foreign)
    split = split_of(masks.parent.name) if masks.parent != scan.root else ""
    found = []
    for label, files in groups.items():
        meaning = scan.meaning(
            [(f, str(f)) for f, _ in files], names, str(masks / label) if label else str(masks)
        )
        for file, shown in files:
            found += _of_mask(scan, file, shown, label, meaning, split)
    return found


def _stems(file: Path) -> list[str]:
    """The names of images that a mask may belong to."""
    stem = file.stem
    shorter = [stem[: -len(end)] for end in ENDS if stem.lower().endswith(end)]
    inner = [Path(stem).stem] if Path(stem).suffix.lower() in PICTURES else []
    return [stem, *shorter, *inner]


def _say_unpaired(scan: Scan, images: Path, pictures, groups, foreign: list[Path]) -> None:
    """Says which masks have no image, and which images have no mask."""
    used = {file.stem for files in groups.values() for _, shown in files for file in shown}
    bare = [files[0] for stem, files in pictures.items() if stem not in used]
    for files, what in ((foreign, f"masks have no image of their name in {images}"),
                        (bare, "images have no mask")):  # fmt: skip
        if files:
            listed = ", ".join(file.name for file in files[:LISTED])
            more = ", ..." if len(files) > LISTED else ""
            scan.say(f"{len(files)} {what}: {listed}{more}", lost=files is foreign)


def _names(scan: Scan, folder: Path) -> dict[int, str]:
    """The names of values from `labels.json`; empty without that file."""
    file = next(
        (f for f in (folder / "labels.json", scan.root / "labels.json") if f.is_file()), None
    )
    tree = scan.json(file) if file else None
    return {} if tree is None else named_values(tree, str(file))


def _of_mask(
    scan: Scan, file: Path, shown: list[Path], label: str, meaning: Meaning, split: str
) -> list[Entry]:
    values: list[int | None] = [None]
    if meaning.classes:
        try:
            present = np.unique(mask_values(file)[0])
        except InputError:
            present = np.zeros(0, int)  # the error is raised when the mask is read
        values = [int(v) for v in present if int(v) in meaning.classes] or [None]

    def read(frame: Frame) -> np.ndarray:
        if len(shown) > 1:
            raise InputError(f"{file} belongs to {' or '.join(f.name for f in shown)}; keep one")
        stored = mask_values(file)[0]
        return scan.placed(stored, frame, str(file))

    def masks(frame: Frame, value: int | None) -> list[np.ndarray]:
        stored = read(frame)
        unnamed = value is None and meaning.classes
        return [np.zeros(stored.shape, bool) if unnamed else meaning.thing(stored, value)]

    return [
        Entry(
            shown[0],
            f"the {name}",
            (name,),
            lambda frame, value=value: masks(frame, value),
            ignored=(lambda frame: meaning.ignored(read(frame))) if meaning.void else None,
            split=split,
        )
        for value in values
        for name in [label or (meaning.classes[value] if value is not None else "thing")]
    ]
