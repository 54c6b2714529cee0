"""Families of models: how each is asked for places, and how its answer is read. One file each in
`families/`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from reasonseg.backbones.speakers.places.frames import FRAMES, Order
from reasonseg.errors import InputError

PHRASE = "{phrase}"


@dataclass(frozen=True)
class Family:
    """How a family of models speaks of places.

    Attributes:
        name: The name of its file.
        types: `model_type` of transformers configs that are of it.
        names: Parts of the names of models that are of it, in small letters; these come first.
        grammar: The grammar of its answers (`grammars.GRAMMARS`), or `any`.
        frame: What its numbers are measured in (`frames.FRAMES`); empty: not known.
        order: The order of a box.
        boxes: The request for the places of a phrase, with `{phrase}` in it.
        answer: The request for what answers a question; empty: `boxes`.
        plain: It takes the request as it is, without a chat template.
        special: Special tokens are part of its answer.
        squash: Its pictures are resized to a square of this side first (0: no).
        factor: Sides that are multiples of this are not resized by a server (0: not known).
        tokens: At most so many tokens are generated.
        silent: What an answer without any place means.
        grounds: Whether it was trained to speak of places; where not, it only judges.
        reasons: Whether it answers questions, rather than only finding phrases.
    """

    name: str
    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    grammar: str = "any"
    frame: str = ""
    order: Order = "xyxy"
    boxes: str = (
        "Locate {phrase}. Answer in JSON: a list of objects with the keys bbox_2d "
        "([x1, y1, x2, y2]) and label. If there is none, output []."
    )
    answer: str = ""
    plain: bool = False
    special: bool = False
    squash: int = 0
    factor: int = 0
    tokens: int = 512
    silent: Literal["unparseable", "absent"] = "unparseable"
    grounds: bool = True
    reasons: bool = True

    def __post_init__(self):
        if self.frame and self.frame not in FRAMES:
            raise InputError(f"family {self.name}: frame {self.frame!r} is not known")

    def request(self, phrase: str, question: bool = False) -> str:
        """What is asked, for a phrase or a question."""
        template = (self.answer if question else "") or self.boxes
        return template.replace("{{", "{").replace("}}", "}").replace(PHRASE, phrase)


UNKNOWN = Family("unknown")


@cache
def families() -> dict[str, Family]:
    """All families by name."""
    found = {}
    for file in sorted((Path(__file__).parent / "families").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        tuples = {k: tuple(v) for k, v in content.items() if isinstance(v, list)}
        found[file.stem] = Family(file.stem, **{**content, **tuples})
    return found


def family_of(model: str = "", model_type: str = "", named: str = "") -> Family:
    """The family of a model: the one that is `named`, else by the model's name, else by its type.

    `UNKNOWN` where nothing fits. Raises `InputError` for a family that does not exist.
    """
    known = families()
    if named:
        if named not in known:
            raise InputError(f"family {named!r} is not one of {', '.join(known)}")
        return known[named]
    small = model.lower()
    longest = sorted(
        ((part, f) for f in known.values() for part in f.names if part in small),
        key=lambda pair: -len(pair[0]),
    )
    if longest:
        return longest[0][1]
    return next((f for f in known.values() if model_type and model_type in f.types), UNKNOWN)


def framed(family: Family, frame: str = "", order: str = "") -> Family:
    """A family with another frame or order, as a setting or a probe says."""
    if frame and frame not in FRAMES:
        raise InputError(f"frame {frame!r} is not one of {', '.join(FRAMES)}")
    if order and order not in ("xyxy", "yxyx"):
        raise InputError(f"order {order!r} is not xyxy or yxyx")
    changed = {k: v for k, v in (("frame", frame), ("order", order)) if v}
    assert set(changed) <= {f.name for f in fields(Family)}
    return replace(family, **changed)
