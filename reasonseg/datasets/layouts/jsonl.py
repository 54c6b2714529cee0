"""`samples.jsonl`: one sample per line.

A line is `{"image", "text", "masks": [PNG, COCO RLE or polygon, ...], "answer"?, "labels"?}`; a
question mark means optional. `"masks": []` means that nothing in the image matches the text.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from reasonseg.datasets.layouts.base import Entry, Scan
from reasonseg.errors import InputError
from reasonseg.structures.mask_values import marked
from reasonseg.structures.masks import from_rle
from reasonseg.structures.placing import Frame
from reasonseg.structures.polygons import placed_mask


def entries(scan: Scan) -> list[Entry]:
    """One entry for each line. Raises `InputError` naming the line that is malformed."""
    file = scan.root / "samples.jsonl"
    if not file.is_file():
        return []
    found = []
    # other separators, such as U+2028, may stand inside of a line
    for number, line in enumerate(scan.text(file).split("\n"), 1):
        if line.strip():
            found.append(_entry(scan, line, f"{file}, line {number}"))
    return found


def _entry(scan: Scan, line: str, place: str) -> Entry:
    try:
        row = json.loads(line)
        image, text, given = row["image"], row["text"], row["masks"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{place}: expected image, text and masks ({error!r})") from None
    given = [given] if isinstance(given, str | dict) else given
    if not isinstance(image, str) or not isinstance(text, str) or not isinstance(given, list):
        raise InputError(
            f"{place}: expected image and text as strings and masks as a list, got "
            f"{image!r:.60}, {text!r:.60} and {given!r:.60}"
        )
    answer, labels = row.get("answer") or "", row.get("labels") or ()
    labels = (labels,) if isinstance(labels, str) else labels
    strings = isinstance(labels, list | tuple) and all(isinstance(one, str) for one in labels)
    if not isinstance(answer, str) or not strings:
        raise InputError(f"{place}: answer and labels must be strings")
    if labels and given and len(labels) != len(given):
        raise InputError(f"{place}: {len(labels)} labels for {len(given)} masks; give one each")
    if not text.strip():
        raise InputError(f"{place}: the text is empty")

    def masks(frame: Frame) -> list[np.ndarray]:
        return [_mask(scan, one, frame, f"{place}, mask {k}") for k, one in enumerate(given)]

    def ignored(frame: Frame) -> np.ndarray:
        found = [np.zeros(frame.size, bool)]
        for k, one in enumerate(given):
            if isinstance(one, str):
                found.append(_read(scan, one, frame, f"{place}, mask {k}")[1])
        return np.any(found, 0)

    picture = scan.picture(image, scan.root)
    files = any(isinstance(one, str) for one in given)
    return Entry(
        picture,
        text,
        tuple(labels),
        masks,
        answer,
        ignored=ignored if files else None,
        absent=not given,
    )


def _read(scan: Scan, name: str, frame: Frame, place: str) -> tuple[np.ndarray, np.ndarray]:
    """The mask and the void pixels of a mask file, as the image is shown."""
    mask, void, said = marked(scan.picture(name, scan.root), void=scan.void)
    if said:
        scan.say(f"{place}: {said}")
    return scan.placed(mask, frame, place), scan.placed(void, frame, place)


def _mask(scan: Scan, given: Any, frame: Frame, place: str) -> np.ndarray:
    if isinstance(given, list):
        several = all(isinstance(part, list) and len(part) >= 6 for part in given)
        parts = given if several and given else [given]
        return placed_mask(parts, place, scan.placing(None, frame, place), scan.say)
    if isinstance(given, dict):
        try:
            mask = from_rle(given)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    elif isinstance(given, str):
        return _read(scan, given, frame, place)[0]
    else:
        raise InputError(f"{place}: {given!r:.60} is no PNG, run-length encoding or polygon")
    return scan.placed(mask, frame, place)
