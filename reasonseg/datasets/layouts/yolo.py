"""YOLO-seg: `data.yaml` with class names, and `labels/X.txt` for `images/X.jpg`.

A line is a class number and the outline as fractions 0..1 of width and height. Outlines of one
class together are its mask; they are filled as OpenCV fills them, outline included.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from reasonseg.datasets.layouts.base import PICTURES, Entry, Scan, split_in
from reasonseg.errors import InputError
from reasonseg.structures.placing import Frame
from reasonseg.structures.polygons import fill, pixels_of

SLACK = 0.01  # how far outside of 0..1 a coordinate may lie; it is moved to the border


def entries(scan: Scan) -> list[Entry]:
    """One entry for each class of each image. Raises `InputError` for a malformed `data.yaml`."""
    file = next((f for f in scan.ending(".yaml", ".yml") if f.stem in ("data", "dataset")), None)
    labels = [f for f in scan.ending(".txt") if "labels" in f.relative_to(scan.root).parts]
    if not labels or (file is None and not scan.ending(*PICTURES)):
        return []
    names = _names(scan, file) if file else {}
    if file is None:
        scan.say(f"{scan.root} has no data.yaml; its classes have numbers for names")
    found = []
    for text in labels:
        picture = _picture(scan, text)
        if picture is None:
            scan.say(f"{text} has no image in the folder images beside labels", lost=True)
        else:
            found += _of_file(scan, text, picture, names)
    return found


def _names(scan: Scan, file: Path) -> dict[int, str]:
    try:
        tree = yaml.safe_load(scan.text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid YAML: {str(error)[:120]}") from None
    names = tree.get("names") if isinstance(tree, dict) else None
    pairs = enumerate(names) if isinstance(names, list) else (names or {}).items() if isinstance(
        names, dict | None
    ) else ()  # fmt: skip
    try:
        return {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError):
        raise InputError(f"{file}: names {names!r:.80} are no names by number") from None


def _picture(scan: Scan, text: Path) -> Path | None:
    parts = list(text.parts)
    at = len(parts) - 1 - parts[::-1].index("labels")
    folder = Path(*parts[:at], "images", *parts[at + 1 : -1])
    beside = scan.beside.get((folder, text.stem), [])
    return next((f for f in beside if f.suffix.lower() in PICTURES), None)


def _of_file(scan: Scan, text: Path, picture: Path, names: dict[int, str]) -> list[Entry]:
    groups: dict[str, list[tuple[int, str]]] = {}
    try:
        lines = scan.text(text).split("\n")
    except InputError as error:
        scan.say(f"left out: {error}", lost=True)
        return []
    for number, line in enumerate(lines, 1):
        if line.strip():
            groups.setdefault(_class(line, names), []).append((number, line))
    split = split_in(text, scan.root)
    return [
        Entry(
            picture,
            f"the {name}",
            (name,),
            lambda frame, mine=mine: [_mask(text, mine, frame)],
            split=split,
        )
        for name, mine in groups.items()
    ]


def _class(line: str, names: dict[int, str]) -> str:
    """The name of the class of a line; the first word where it is no number."""
    word = line.split()[0]
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else None
    return word if number is None else names.get(number, f"class {number}")


def _mask(text: Path, lines: list[tuple[int, str]], frame: Frame) -> np.ndarray:
    (height, width), parts = frame.size, []
    for number, line in lines:
        place, words = f"{text}, line {number}", line.split()
        try:
            int(words[0])
            values = np.array([float(w) for w in words[1:]])
        except ValueError:
            raise InputError(f"{place}: {line[:60]!r} is not a class and numbers") from None
        if len(values) == 4:
            raise InputError(f"{place} has only a box; a mask needs an outline")
        if len(values) < 6 or len(values) % 2:
            raise InputError(f"{place}: {len(values)} numbers; an outline has three points or more")
        if not ((values >= -SLACK) & (values <= 1 + SLACK)).all():
            wrong = values[~((values >= -SLACK) & (values <= 1 + SLACK))][0]
            raise InputError(f"{place}: {wrong:g} is no fraction 0..1 of the image")
        points = values.reshape(-1, 2) * (width, height)
        parts.append(fill(pixels_of(points, frame.size), frame.size))
    return np.any(parts, 0)
