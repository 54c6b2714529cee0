"""`samples.jsonl`: one sample per line.

A line is `{"image", "text", "masks": [PNG or COCO RLE, ...], "answer"?, "labels"?}`; a question
mark means optional.
"""

from __future__ import annotations

import json
from pathlib import Path

from reasonseg.datasets.layouts.base import Entry
from reasonseg.errors import InputError
from reasonseg.structures.images import read_mask
from reasonseg.structures.masks import from_rle


def entries(root: Path) -> list[Entry]:
    """One entry for each line. Raises `InputError` naming the line that is malformed."""
    file = root / "samples.jsonl"
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            picture, text, given = root / row["image"], str(row["text"]), list(row["masks"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}, line {number}: expected image, text and masks ({error!r})"
            ) from None

        def masks(size, given=given):
            return [from_rle(m) if isinstance(m, dict) else read_mask(root / m) for m in given]

        found.append(
            Entry(picture, text, tuple(row.get("labels") or ()), masks, row.get("answer", ""))
        )
    return found
