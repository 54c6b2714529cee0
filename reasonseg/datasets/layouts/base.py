"""What a layout gives: entries, which are samples that are not read yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonseg.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Entry:
    """One sample to be: its picture, what is asked, and how its masks are read in the picture's
    size.
    """

    picture: Path
    text: str
    labels: tuple[str, ...]
    masks: Callable[[tuple[int, int]], list[np.ndarray]]
    answer: str = ""
    data: bytes | None = None  # of the picture, where it is no file of its own


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from None


def indexed_classes(files: dict[Any, Any], named: bool) -> dict[Any, list[int]]:
    """The classes in each of a data set's masks (paths or open files, by any key) where they are
    indexed; nothing where binary.

    They are indexed if `labels.json` names them, or if they have palettes or few and small values,
    more than one in all.
    """
    found: dict[Any, list[int]] = {}
    palettes = False
    for key, file in files.items():
        try:
            with Image.open(file) as picture:
                palettes |= picture.mode == "P"
                if picture.mode in ("P", "L"):
                    found[key] = [
                        int(v) for v in np.unique(np.asarray(picture)) if v not in (0, 255)
                    ]
        except OSError:
            continue  # it is named when it is read
    values = {v for each in found.values() for v in each}
    indexed = named or (len(values) > 1 and (palettes or (len(values) <= 32 and max(values) < 64)))
    return {key: each for key, each in found.items() if each} if indexed else {}
