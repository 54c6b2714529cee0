"""Hugging Face `datasets`: parquet files (of a hub repository) or arrow files (`save_to_disk`).

They have the columns `image` and `mask`. The text is in one of the columns `WORDS`; without it
the text of every mask is "the thing".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.layouts.base import Entry, indexed_classes, read_json
from reasonseg.errors import InputError
from reasonseg.structures.images import read_mask, read_values

# columns that may hold the text or label of a mask
WORDS = (
    "text",
    "sentence",
    "query",
    "prompt",
    "label",
    "class",
)


def entries(root: Path) -> list[Entry]:
    """One entry for each text or class of each image.

    Raises `InputError` where pyarrow is missing or a table cannot be read.
    """
    files = sorted(f for pattern in ("*.parquet", "*.arrow") for f in root.rglob(pattern))
    names = read_json(root / "labels.json") if files and (root / "labels.json").is_file() else {}
    return [entry for file in files for entry in _rows(file, names)]


def _rows(file: Path, names: dict) -> list[Entry]:
    """Entries of a table with images and masks; none where it has no such columns.

    Without a column of text, masks may be indexed; `names` are the names of the classes.
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
    classes = (
        {} if words else indexed_classes({n: mask for n, (_, mask) in enumerate(rows)}, bool(names))
    )
    for number, ((picture, mask), text) in enumerate(zip(rows, said, strict=True)):
        name = shown.setdefault(picture, file.with_suffix("") / str(number))
        data[name] = picture
        for value in classes.get(number, [None]):
            label = "thing" if value is None else names.get(str(value), f"class {value}")
            label = text.strip() if isinstance(text, str) else label
            found.setdefault((name, label), []).append((mask, value))

    def entry(name: Path, label: str, given: list[tuple[bytes, int | None]]) -> Entry:
        asked = label if len(label.split()) > 3 else f"the {label}"

        def masks(_: tuple[int, int]) -> list[np.ndarray]:
            return [np.any([_of_class(m, value, f"a mask of {name}") for m, value in given], 0)]

        return Entry(name, asked, (label,), masks, data=data[name])

    return [entry(name, label, given) for (name, label), given in found.items()]


def _of_class(mask: bytes, value: int | None, name: str) -> np.ndarray:
    """bool `[h, w]`: where a mask has the class `value`, or (None) where it is not black."""
    return read_mask(mask, name=name) if value is None else read_values(mask, name=name) == value


def _bytes(cell: Any, place: str) -> bytes:
    """The bytes of an image in a cell of `datasets`: the cell itself, or its key `bytes`."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(found, bytes):
        raise InputError(
            f"{place}: no bytes of an image file; save the data set with its images embedded"
        )
    return found
