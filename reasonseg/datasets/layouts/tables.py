"""Hugging Face `datasets`: parquet (a hub repository's) or arrow files (`save_to_disk`) with
columns `image` and `mask`.

Words are in one of the columns `WORDS`; without them every mask shows "the thing".
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonseg.datasets.layouts.base import Entry, indexed_classes, read_json
from reasonseg.errors import InputError
from reasonseg.structures.images import read_mask

# columns of a table that say what its mask shows
WORDS = (
    "text",
    "sentence",
    "query",
    "prompt",
    "label",
    "class",
)


def entries(root: Path) -> list[Entry]:
    """One for each text or class of each image."""
    files = sorted(f for pattern in ("*.parquet", "*.arrow") for f in root.rglob(pattern))
    names = read_json(root / "labels.json") if files and (root / "labels.json").is_file() else {}
    return [entry for file in files for entry in _rows(file, names)]


def _rows(file: Path, names: dict) -> list[Entry]:
    """Entries of a table with pictures and masks; none where it has no such columns.

    Without a column of words, masks may be indexed; `names` are those of the classes.
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
    shown: dict[bytes, Path] = {}  # questions on one picture share it
    found: dict[tuple[Path, str], list[tuple[bytes, int | None]]] = {}
    data: dict[Path, bytes] = {}
    rows = [
        tuple(_bytes(row[c], f"{file}, row {n}, {c}") for c in ("image", "mask"))
        for n, row in enumerate(table.to_pylist())
    ]
    said = table[words].to_pylist() if words else [None] * len(rows)
    classes = (
        {}
        if words
        else indexed_classes({n: io.BytesIO(mask) for n, (_, mask) in enumerate(rows)}, bool(names))
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
        masks = lambda _: [
            np.any([_of_class(m, value, f"a mask of {name}") for m, value in given], 0)
        ]  # noqa: E731
        return Entry(name, asked, (label,), masks, data=data[name])

    return [entry(name, label, given) for (name, label), given in found.items()]


def _of_class(mask: bytes, value: int | None, name: str) -> np.ndarray:
    """Where a mask is one class of several, or (None) anything."""
    return (
        read_mask(mask, name=name)
        if value is None
        else np.asarray(Image.open(io.BytesIO(mask))) == value
    )


def _bytes(cell: Any, place: str) -> bytes:
    """The bytes of an image as `datasets` keeps it: itself, or under `bytes`."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(found, bytes):
        raise InputError(
            f"{place}: no bytes of an image file; save the data set with its images embedded"
        )
    return found
