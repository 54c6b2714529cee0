"""Finds out what a model's numbers are measured in, by asking about drawn squares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from reasonseg.backbones.speakers.base import Ledger, Speaker
from reasonseg.backbones.speakers.places.family import Family
from reasonseg.backbones.speakers.places.frames import (
    FRAMES,
    Order,
    Seen,
    box_in_pixels,
    intersection_over_union,
)
from reasonseg.backbones.speakers.places.reading import said_by
from reasonseg.errors import InputError
from reasonseg.runtime import cache_folder
from reasonseg.structures.images import atomic_write
from reasonseg.structures.query import Box

SIZE = (720, 1280)  # of the drawn picture, not square so that axes cannot be confused
SQUARES = ((90, 140, 250, 300), (860, 420, 1060, 620), (520, 60, 660, 200))
COLOUR, GROUND = (220, 30, 30), (235, 235, 225)
LEAST = 0.5  # mean IoU from which a frame is believed
WORDS = "the red square"


@dataclass(frozen=True)
class Probed:
    """What a probe found: frame, order and the mean IoU with the squares (0..1)."""

    frame: str
    order: str
    iou: float
    answered: int


def drawn_square(box: Box) -> np.ndarray:
    """The probe's picture, uint8 `[720, 1280, 3]`."""
    picture = np.full((*SIZE, 3), GROUND, np.uint8)
    x0, y0, x1, y1 = (int(v) for v in box)
    picture[y0:y1, x0:x1] = COLOUR
    return picture


def probe(speaker: Speaker) -> Probed:
    """Asks about three squares and takes the frame and order with the best mean IoU.

    Raises `InputError` where no frame reaches `LEAST`, or no answer holds a box.
    """
    ledger = Ledger(len(SQUARES))
    heard: list[tuple[Box, Seen, tuple]] = []
    for box in SQUARES:
        given, seen = speaker.shape(drawn_square(box))
        request = speaker.family.request(WORDS)
        options = {"limit": speaker.family.tokens, "plain": speaker.family.plain}
        reply = ledger.say(speaker, "probe", [given], request, **options)
        if reply is None:
            raise InputError(ledger.log[-1].get("error", f"{speaker.name} did not answer"))
        boxes = [s.box for s in said_by(reply.text, speaker.family) if s.box is not None]
        if boxes:
            told = replace(seen, fed=reply.fed or seen.fed)
            heard.append((box, told, boxes[0]))
    if not heard:
        raise InputError(
            f"{speaker.name} named no box in {len(SQUARES)} answers; it may not be able to. Its "
            f"last answer: {ledger.log[-1].get('reply', '')[:120]!r}"
        )
    found = [
        (np.mean([score(b, s, n, frame, order) for b, s, n in heard]), frame, order)
        for frame, order in _ways()
    ]
    best, frame, order = max(found, key=lambda f: f[0])
    if best < LEAST or len(heard) < 2:
        raise InputError(
            f"{speaker.name}: no frame explains its boxes (the best, {frame} {order}, has IoU "
            f"{best:.2f} with the squares); name frame and order in a YAML file"
        )
    return Probed(frame, order, round(float(best), 3), len(heard))


def _ways() -> Iterator[tuple[str, Order]]:
    for frame in FRAMES:
        for order in get_args(Order):
            yield frame, order


def score(box: Box, seen: Seen, numbers: Any, frame: str, order: Order) -> float:
    """IoU (0..1) of a true box with what a model's numbers would mean in a frame."""
    if FRAMES[frame].pixels == "fed" and seen.fed is None:
        return 0.0
    read, _ = box_in_pixels(numbers, FRAMES[frame], order, seen)
    return 0.0 if read is None else intersection_over_union(box, read)


def _file() -> Path:
    return cache_folder() / "frames.json"


def keep(name: str, found: Probed) -> Path:
    """Keeps what was found, by the name of the model; the file."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    known = _known()
    with atomic_write(file) as aside:
        aside.write_text(json.dumps({**known, name: asdict(found)}, indent=1), encoding="utf-8")
    return file


def _known() -> dict[str, Any]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def with_probe(family: Family, name: str) -> Family:
    """A family without a frame, with what an earlier probe found of this model."""
    found = _known().get(name)
    if family.frame or not isinstance(found, dict):
        return family
    frame, order = found.get("frame"), found.get("order")
    if frame in FRAMES and order in get_args(Order):
        return replace(family, frame=frame, order=order)
    return family
