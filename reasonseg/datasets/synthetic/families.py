"""Scenes that belong together: one that is asked about, and others that show the same things
looking otherwise.

Every copy of a thing has a hue, a turn and a size of its own, so that comparing pixels does not
find it again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reasonseg.datasets.synthetic.drawing import Placement, Scene, draw_shape, lay_out, paint_scene
from reasonseg.datasets.synthetic.sprites import HUES, Sprite

TURN = 75.0  # degrees to either side
# of hues, where a thing has no colour of its own to change
TURNS = (
    60.0,
    120.0,
    180.0,
    240.0,
    300.0,
)
SHOWN = 4  # things of the asked scene that each other scene shows again, at most


def draw_alike(
    rng: np.random.Generator,
    chosen: list[Sprite],
    size: int,
    shape: tuple[float, float] | None = None,
    turn: float = TURN,
) -> Scene:
    """A scene of the `chosen` things, each turned by up to `turn` degrees and hue-shifted;
    `size` its longer side in pixels.
    """
    height, width = (round(size * side) for side in shape or draw_shape(rng))
    layout = [
        _varied(rng, place, turn) for place in lay_out(rng, chosen, height / size, width / size)
    ]
    return paint_scene(rng, layout, size, height, width)


def _varied(rng: np.random.Generator, place: Placement, turn: float) -> Placement:
    angle = float(rng.uniform(-turn, turn)) + 180 * place.upside_down
    if place.sprite.hue is not None:
        return replace(place, angle=angle, color=str(rng.choice(list(HUES))))
    return replace(place, angle=angle, degrees=float(rng.choice((0.0, *TURNS))))


def draw_family(
    rng: np.random.Generator,
    sprites: list[Sprite],
    size: int,
    shown: int,
    chosen: list[Sprite],
    shape: tuple[float, float] | None = None,
) -> tuple[Scene, list[Scene]]:
    """A scene of the `chosen` things, and `shown` others that show up to four of them again
    among other things.
    """
    asked = draw_alike(rng, chosen, size, shape)
    kinds = list(dict.fromkeys(t.sprite for t in asked.objects))
    others = []
    for _ in range(shown):
        again = [kinds[i] for i in rng.permutation(len(kinds))[:SHOWN]]
        strangers = [sprites[i] for i in rng.integers(len(sprites), size=int(rng.integers(0, 3)))]
        others.append(draw_alike(rng, [*again, *(s for s in strangers if s not in kinds)], size))
    return asked, others


def union_of(scene: Scene, sprite: Sprite) -> np.ndarray:
    """bool `[h, w]`: every pixel of every copy of a thing; empty where it is not there."""
    mask = np.zeros(scene.image.shape[:2], bool)
    for thing in scene.objects:
        if thing.sprite is sprite:
            mask |= thing.mask
    return mask


def company(
    rng: np.random.Generator, sprite: Sprite, sprites: list[Sprite], low: int, high: int
) -> list[Sprite]:
    """`low` to `high` other things to stand beside one; half of the time the first is of its
    category.
    """
    kin = [s for s in sprites if s.category == sprite.category and s is not sprite]
    chosen = [kin[rng.integers(len(kin))]] if kin and rng.random() < 0.5 else []
    count = int(rng.integers(low, high + 1))
    while len(chosen) < count:
        other = sprites[rng.integers(len(sprites))]
        if other is not sprite and other not in chosen:
            chosen.append(other)
    return chosen
