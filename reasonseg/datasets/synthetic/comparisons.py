"""What distinguishes the objects of a drawn scene: names, colours, sizes and places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reasonseg.datasets.synthetic.drawing import Scene, SceneObject
from reasonseg.datasets.synthetic.sprites import HUES
from reasonseg.datasets.synthetic.wordings import PLACES


def by_name(scene: Scene) -> dict[str, list[int]]:
    """Indices of the objects by name."""
    groups: dict[str, list[int]] = {}
    for i, thing in enumerate(scene.objects):
        groups.setdefault(thing.name, []).append(i)
    return groups


def by_noun(scene: Scene) -> dict[str, list[int]]:
    """Indices of the objects by name and by category."""
    groups = by_name(scene)
    for i, thing in enumerate(scene.objects):
        groups.setdefault(thing.sprite.category, []).append(i)
    return groups


def telling(things: list[SceneObject]) -> Iterator[tuple[int, str]]:
    """(index, words) of each attribute that exactly one of several objects has."""
    colors = [t.color for t in things if t.color is not None]
    if len(colors) == len(things):
        yield from ((k, c) for k, c in enumerate(colors) if colors.count(c) == 1)
    if sum(t.upside_down for t in things) == 1:
        yield next(k for k, t in enumerate(things) if t.upside_down), "upside-down"
    elif sum(not t.upside_down for t in things) == 1:
        yield next(k for k, t in enumerate(things) if not t.upside_down), "upright"
    areas = np.array([t.area for t in things])
    if (k := clear_winner(areas, ratio=1.6)) is not None:
        yield from ((k, word) for word in ("big", "large"))
    if (k := clear_winner(1 / areas, ratio=1.6)) is not None:
        yield from ((k, word) for word in ("small", "little"))
    x, y = np.array([t.center for t in things]).T
    for key, values in (("left", -x), ("right", x), ("top", -y), ("bottom", y)):
        if (k := clear_winner(values, gap=0.2)) is not None:
            yield from ((k, words) for words in PLACES[key])


def clear_winner(values: np.ndarray, gap: float = 0.0, ratio: float = 0.0) -> int | None:
    """Index of the largest value of `[n]`, or None where its lead is too small.

    It must exceed the second value by `gap`, or by the factor `ratio` where that is given.
    """
    order = np.argsort(values)
    best, second = values[order[-1]], values[order[-2]]
    return int(order[-1]) if (best >= second * ratio if ratio else best >= second + gap) else None


def related(points: np.ndarray, anchor: np.ndarray) -> Iterator[tuple[str, int]]:
    """(relation, index) for each relation to the anchor that clearly holds for one point only.

    `points` is `[n, 2]` and `anchor` `[2]`, (x, y) as fractions of the longer side of the image.
    """
    dx, dy = (points - anchor).T
    for relation, lead in (("left", -dx), ("right", dx), ("above", -dy), ("below", dy)):
        if (lead > 0.08).sum() == 1 and (lead > -0.04).sum() == 1:
            yield relation, int(lead.argmax())
    distance = np.hypot(dx, dy)
    if (k := clear_winner(1 / distance, ratio=1.4)) is not None:
        yield "near", k
    if (k := clear_winner(distance, ratio=1.4)) is not None:
        yield "far", k


def extremes(things: list[SceneObject]) -> dict[str, int | None]:
    """The index of the clearly largest, smallest, leftmost ... object; None where there is none."""
    areas = np.array([t.area for t in things])
    x, y = np.array([t.center for t in things]).T
    winners = {
        "large": clear_winner(areas, ratio=1.35),
        "small": clear_winner(1 / areas, ratio=1.35),
    }
    sides = {"left": -x, "right": x, "top": -y, "bottom": y}
    return winners | {side: clear_winner(values, gap=0.1) for side, values in sides.items()}


def close(a: str, b: str) -> bool:
    """Whether two colour words may mean the same colour: hues less than 40 degrees apart."""
    return abs((HUES.get(a, 999.0) - HUES.get(b, -999.0) + 180) % 360 - 180) < 40
