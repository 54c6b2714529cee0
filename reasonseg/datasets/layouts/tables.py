"""Hugging Face `datasets`: parquet files (of a hub repository) or arrow files (`save_to_disk`).

They have the columns `image` and `mask`. The text is in one of the columns `WORDS`; without it
the text of every mask is "the thing".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.layouts.base import Entry, Scan, split_in, split_of
from reasonseg.errors import InputError
from reasonseg.structures.mask_values import Meaning, mask_values, named_values
from reasonseg.structures.placing import Frame

# columns that may hold the text or label of a mask
WORDS = (
    "text",
    "sentence",
    "query",
    "prompt",
    "label",
    "class",
)


def entries(scan: Scan) -> list[Entry]:
    """One entry for each text or class of each image.

    Raises `InputError` where pyarrow is missing or a table cannot be read.
    """
    files = scan.ending(".parquet", ".arrow")
    named = scan.root / "labels.json"
    tree = scan.json(named) if files and named.is_file() else None
    names = {} if tree is None else named_values(tree, str(named))
    return [entry for file in files for entry in _rows(scan, file, names)]


def _rows(scan: Scan, file: Path, names: dict[int, str]) -> list[Entry]:
    """Entries of a table with images and masks; none where it has no such columns.

    Without a column of text, masks may have a value per class; `names` are those of the classes.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{file} needs pyarrow: pip install 'reasonseg[train]'") from None
    try:
        table = (
            pq.read_table(file)
            if file.suffix == ".parquet"
            else pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a table that can be read: {str(error)[:160]}") from None
    if not {"image", "mask"} <= set(table.column_names):
        return []
    words = next((name for name in WORDS if name in table.column_names), None)
    shown: dict[bytes, Path] = {}  # rows with the same image share one path
    found: dict[tuple[Path, str], list[tuple[bytes, int | None]]] = {}
    data: dict[Path, bytes] = {}
    rows = [
        tuple(_bytes(row[c], f"{file}, row {n}, {c}") for c in ("image", "mask"))
        for n, row in enumerate(table.to_pylist())
    ]
    said = table[words].to_pylist() if words else [None] * len(rows)
    masks = [(mask, f"{file}, row {n}, mask") for n, (_, mask) in enumerate(rows)]
    meaning = scan.meaning(masks, names, str(file))
    for number, ((picture, mask), text) in enumerate(zip(rows, said, strict=True)):
        name = shown.setdefault(picture, file.with_suffix("") / str(number))
        data[name] = picture
        for value in [None] if words else _classes(mask, meaning):
            label = "thing" if value is None else meaning.classes[value]
            label = text.strip() if isinstance(text, str) and text.strip() else label
            found.setdefault((name, label), []).append((mask, value))
    split = split_of(file.name.split("-")[0].split(".")[0]) or split_in(file, scan.root)
    return [
        replace(_entry(scan, name, label, given, meaning, data[name]), split=split)
        for (name, label), given in found.items()
    ]


def _classes(mask: bytes, meaning: Meaning) -> list[int | None]:
    """The classes in a mask; None for a mask of one thing."""
    if not meaning.classes:
        return [None]
    try:
        present = np.unique(mask_values(mask)[0])
    except InputError:
        return [next(iter(meaning.classes))]  # the error is raised when the mask is read
    return [int(v) for v in present if int(v) in meaning.classes]


def _entry(
    scan: Scan,
    name: Path,
    label: str,
    given: list[tuple[bytes, int | None]],
    meaning: Meaning,
    data: bytes,
) -> Entry:
    asked = label if len(label.split()) > 3 else f"the {label}"

    def stored(frame: Frame) -> list[np.ndarray]:
        found = []
        for mask, _ in given:
            values = mask_values(mask, name=f"a mask of {name}")[0]
            found.append(scan.placed(values, frame, f"a mask of {name}"))
        return found

    def masks(frame: Frame) -> list[np.ndarray]:
        pairs = zip(stored(frame), given, strict=True)
        return [np.any([meaning.thing(values, value) for values, (_, value) in pairs], 0)]

    def ignored(frame: Frame) -> np.ndarray:
        return np.any([meaning.ignored(values) for values in stored(frame)], 0)

    return Entry(name, asked, (label,), masks, data=data, ignored=ignored if meaning.void else None)


def _bytes(cell: Any, place: str) -> bytes:
    """The bytes of an image in a cell of `datasets`: the cell itself, or its key `bytes`."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(found, bytes):
        raise InputError(
            f"{place}: no bytes of an image file; save the data set with its images embedded"
        )
    return found
