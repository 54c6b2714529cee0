"""PASCAL VOC: `JPEGImages/` and `SegmentationClass/`, here or in `VOCdevkit/VOC2012/`.

Values are the classes of VOC, or those of `labelmap.txt` (CVAT); 255 is void.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reasonseg.datasets.layouts.base import PICTURES, Entry, Scan
from reasonseg.errors import InputError
from reasonseg.structures.images import read_values
from reasonseg.structures.mask_values import VOID_COLOUR, colour_code
from reasonseg.structures.placing import Frame

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip
VOID = 255
SETS = (("train", "train"), ("val", "validation"), ("test", "test"))


def entries(scan: Scan) -> list[Entry]:
    """One entry for each class of each mask. Raises `InputError` for a malformed labelmap."""
    found = []
    for masks in sorted({f.parent for f in scan.files if f.parent.name == "SegmentationClass"}):
        home = masks.parent
        names, colours = _names(scan, home)
        splits = {
            stem: split
            for file, split in SETS
            for stem in _listed(scan, home / "ImageSets" / "Segmentation" / f"{file}.txt")
        }
        pictures = {f.stem: f for f in scan.ending(*PICTURES, under=home / "JPEGImages")}
        missing = 0
        for file in scan.ending(*PICTURES, under=masks):
            if file.stem not in pictures:
                missing += 1
                continue
            found += _of_mask(scan, file, pictures[file.stem], names, colours, splits)
        if missing:
            scan.say(f"{missing} masks of {masks} have no image in JPEGImages", lost=True)
    return found


def _names(scan: Scan, home: Path) -> tuple[dict[int, str], bool]:
    """The class names by value or by colour, and whether they are by colour.

    They are those that the user says, of `labelmap.txt`, of `class_names.txt`, or VOC's own.
    """
    if scan.classes is not None:
        return dict(scan.classes), False
    listed = home / "class_names.txt"
    if listed.is_file():
        lines = [line.strip() for line in scan.text(listed).splitlines() if line.strip()]
        names = [line for line in lines if line != "__ignore__"]
        return {value: name for value, name in enumerate(names) if value}, False
    file = home / "labelmap.txt"
    if not file.is_file():
        scan.say(
            f"{home}: values have the names of PASCAL VOC's 20 classes; data.classes=... others"
        )
        return dict(enumerate(CLASSES, 1)), False
    names = {}
    for number, line in enumerate(scan.text(file).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(":")
            try:
                red, green, blue = (int(v) for v in rest.split(":")[0].split(","))
            except ValueError:
                raise InputError(f"{file}, line {number}: expected name:red,green,blue") from None
            names[red << 16 | green << 8 | blue] = name.strip()
    names.pop(0, None)
    return names, True


def _listed(scan: Scan, file: Path) -> list[str]:
    return scan.text(file).split() if file.is_file() else []


def _values(file: Path, colours: bool) -> np.ndarray:
    values = read_values(file, colours=colours)
    return colour_code(values) if values.ndim == 3 else values


def _of_mask(
    scan: Scan, file: Path, picture: Path, names: dict[int, str], colours: bool, splits
) -> list[Entry]:
    void = [VOID_COLOUR] if colours else [VOID]
    void = [*void, *(scan.void or ())]
    try:
        present = [int(v) for v in np.unique(_values(file, colours)) if v and int(v) not in void]
    except InputError:
        present = []  # the error is raised when the mask is read
    unknown = [v for v in present if v not in names]
    if unknown:
        scan.say(f"{file}: values {unknown[:8]} have no class; they are left out", lost=True)

    def read(frame: Frame) -> np.ndarray:
        stored = _values(file, colours)
        return scan.placed(stored, frame, str(file))

    return [
        Entry(
            picture,
            f"the {names[value]}",
            (names[value],),
            lambda frame, value=value: [read(frame) == value],
            ignored=lambda frame: np.isin(read(frame), void),
            split=splits.get(file.stem, ""),
        )
        for value in present
        if value in names
    ]
