"""Speakers for tests: one that says what a script has, and one that knows the truth and may lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reasonseg.backbones.speakers.base import Reply, SpeakerError, shaped
from reasonseg.backbones.speakers.places.family import Family, families
from reasonseg.segmenters.drawing import Drawn


@dataclass
class Scripted:
    """Says what `script(request, pictures)` gives; None: it cannot answer."""

    script: Callable[[str, Sequence[np.ndarray]], str | None]
    family: Family = field(default_factory=lambda: families()["qwen3-vl"])
    name: str = "scripted"
    asked: list[str] = field(default_factory=list)
    fingerprint: str = "scripted-1"
    answered: int = 0

    def shape(self, image: np.ndarray):
        return shaped(image, self.family)

    def say(self, pictures, text, *, limit=512, temperature=0.0, plain=False) -> Reply:
        self.asked.append(text)
        said = self.script(text, pictures)
        if said is None:
            raise SpeakerError("scripted: it is down")
        self.answered += 1
        return Reply(said, None, 10, 5)


def box_json(box, size, label="it") -> str:
    """A box in pixels as Qwen3-VL says it."""
    height, width = size
    x0, y0, x1, y1 = box
    values = [x0 / width, y0 / height, x1 / width, y1 / height]
    return json.dumps([{"bbox_2d": [round(1000 * v) for v in values], "label": label}])


@dataclass
class Boxes:
    """A drawer that fills the boxes it is given; it reads `phrases` (phrase -> box) if it has any.

    `score` is its own score of every mask.
    """

    phrases: dict[str, tuple] = field(default_factory=dict)
    score: float = 0.6
    name: str = "boxes"

    @property
    def reads(self) -> bool:
        return bool(self.phrases)

    def places(self, image, places) -> Drawn:
        return self._drawn(image, [(p.box, p.label) for p in places if p.box])

    def phrase(self, image, phrase) -> Drawn:
        box = self.phrases.get(phrase)
        found = self._drawn(image, [(box, phrase)] if box else [])
        found.absent = box is None
        return found

    def _drawn(self, image, boxes) -> Drawn:
        masks = np.zeros((len(boxes), *image.shape[:2]), bool)
        for mask, ((x0, y0, x1, y1), _) in zip(masks, boxes, strict=True):
            mask[int(y0) : int(y1), int(x0) : int(x1)] = True
        scores = np.full(len(boxes), self.score, np.float32)
        return Drawn(masks, scores, [label for _, label in boxes])

    def forget(self) -> None:
        pass
