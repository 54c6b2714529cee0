"""The entries that a layout returns: samples whose files are not read yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import open_image

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Entry:
    """One sample before its files are read.

    `picture` is the path of the image and `data` its bytes, where it is not a separate file.
    `masks(size)` reads the masks, bool `[h, w]` each, for an image of `size` (height, width).
    `answer` is the true answer; empty where the data has none.
    """

    picture: Path
    text: str
    labels: tuple[str, ...]
    masks: Callable[[tuple[int, int]], list[np.ndarray]]
    answer: str = ""
    data: bytes | None = None


def read_json(file: Path) -> Any:
    """The values of a JSON file. Raises `InputError` where it is not valid."""
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from None


def indexed_classes(files: dict[Any, Any], named: bool) -> dict[Any, list[int]]:
    """The classes (pixel values) in each mask of a data set, by its key; empty for binary masks.

    `files` are paths or the bytes of files; `named` is whether `labels.json` names the classes. The
    masks count as indexed (pixel value = class) if they are named, or if together they have more
    than one value besides 0 and 255 and either palettes or few small values.
    """
    found: dict[Any, list[int]] = {}
    palettes = False
    for key, file in files.items():
        try:
            with open_image(file) as picture:
                palettes |= picture.mode == "P"
                if picture.mode in ("P", "L"):
                    found[key] = [
                        int(v) for v in np.unique(np.asarray(picture)) if v not in (0, 255)
                    ]
        except InputError:
            continue  # the error is raised when the mask is read
    values = {v for each in found.values() for v in each}
    indexed = named or (len(values) > 1 and (palettes or (len(values) <= 32 and max(values) < 64)))
    return {key: each for key, each in found.items() if each} if indexed else {}
