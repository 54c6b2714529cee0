"""From a model's words to places in pixels. Nothing here raises for any text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reasonseg.backbones.speakers.places.family import Family
from reasonseg.backbones.speakers.places.frames import (
    FRAMES,
    Frame,
    Seen,
    box_in_pixels,
    intersection_over_union,
    point_in_pixels,
)
from reasonseg.backbones.speakers.places.grammars import GRAMMARS, Said, read_any
from reasonseg.backbones.speakers.places.text import says_absent, spoken
from reasonseg.structures.query import Box, Point

Status = Literal["found", "absent", "unparseable"]
SAME = 0.95  # IoU from which two boxes of one answer are one
MARCHING = 4  # boxes of one size in one row, from which an answer is suspicious


@dataclass(frozen=True)
class Place:
    """Where a thing is, in pixels of the picture: a box, points on it, or both; its label."""

    box: Box | None = None
    points: tuple[Point, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Reading:
    """What was understood of an answer.

    `status`: `found` (there are places), `absent` (the model says that there is none) or
    `unparseable`. `flags` say what is suspicious or was mended. `raw` is the whole answer.
    """

    status: Status
    places: tuple[Place, ...] = ()
    flags: frozenset[str] = frozenset()
    raw: str = field(default="", repr=False)


def read_places(text: str, family: Family, seen: Seen) -> Reading:
    """The places in a model's answer about a picture, in pixels of the picture.

    Args:
        text: The whole answer.
        family: How the model speaks.
        seen: The picture as the model saw it.

    Returns:
        The reading; `unparseable` where nothing can be understood.
    """
    said = said_by(text, family)
    if not said:
        if says_absent(spoken(text)):
            return Reading("absent", raw=text)
        if family.silent == "absent" and "<loc" not in text:
            return Reading("absent", raw=text)
        return Reading("unparseable", raw=text)
    frame = FRAMES.get(family.frame) or guessed(said, seen)
    if frame.pixels == "fed" and seen.fed is None:
        return Reading("unparseable", flags=frozenset({"frame unknown"}), raw=text)
    flags: set[str] = set() if family.frame else {"frame guessed"}
    places: list[Place] = []
    for thing in said:
        place, marks = _placed(thing, frame, family, seen)
        flags |= marks
        if place is not None and not _repeated(place, places):
            places.append(place)
    if _marching(places):
        flags.add("marching boxes")
    if not places:
        return Reading("unparseable", flags=frozenset(flags), raw=text)
    return Reading("found", tuple(places), frozenset(flags), text)


def said_by(text: str, family: Family) -> list[Said]:
    """What an answer says, in the model's numbers: by its grammar, else by any that fits."""
    read = GRAMMARS.get(family.grammar)
    return (read(text) if read is not None else []) or read_any(text)


def guessed(said: list[Said], seen: Seen) -> Frame:
    """A frame by the size of the numbers, where nothing better is known: all up to 1 are shares,
    any above 1000 are pixels, others 0..1000.
    """
    values = [abs(v) for s in said for v in (*(s.box or ()), *(c for p in s.points for c in p[:2]))]
    most = max(values, default=0.0)
    return FRAMES["unit" if most <= 1 else "pixels" if most > 1000 else "thousand"]


def _placed(said: Said, frame: Frame, family: Family, seen: Seen) -> tuple[Place | None, set[str]]:
    flags: set[str] = set()
    box: Box | None = None
    if said.box is not None:
        box, flags = box_in_pixels(said.box, frame, family.order, seen)
    points = []
    for x, y, on in said.points:
        spot = point_in_pixels(x, y, frame, seen)
        if spot is None:
            flags.add("outside")
        else:
            points.append((spot[0], spot[1], on))
    if box is None and not any(on for _, _, on in points):
        return None, flags
    return Place(box, tuple(points), said.label), flags


def _repeated(place: Place, places: list[Place]) -> bool:
    return any(
        (place.box == other.box and place.points == other.points)
        or (
            place.box is not None
            and other.box is not None
            and place.label == other.label
            and intersection_over_union(place.box, other.box) > SAME
        )
        for other in places
    )


def _marching(places: list[Place]) -> bool:
    """Whether many boxes of one size stand in one row, as models do at extreme aspect ratios."""
    sizes: dict[tuple[int, int, int], int] = {}
    for place in places:
        if place.box is not None:
            x0, y0, x1, y1 = place.box
            key = round((x1 - x0) / 3), round((y1 - y0) / 3), round(y0 / 3)
            sizes[key] = sizes.get(key, 0) + 1
    return max(sizes.values(), default=0) >= MARCHING
