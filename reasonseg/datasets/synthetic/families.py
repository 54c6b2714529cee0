"""Scenes with common objects: one to ask about, and others that show the same objects.

Every copy of an object has its own hue, rotation and size, so that a comparison of pixels does not
find it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reasonseg.datasets.synthetic.drawing import Placement, Scene, draw_shape, lay_out, paint_scene
from reasonseg.datasets.synthetic.sprites import HUES, Sprite

TURN = 75.0  # largest rotation in degrees, to either side
# hue shifts in degrees, for objects that have no main hue
TURNS = (
    60.0,
    120.0,
    180.0,
    240.0,
    300.0,
)
SHOWN = 4  # at most so many objects of the first scene are repeated in each other scene


def draw_alike(
    rng: np.random.Generator,
    chosen: list[Sprite],
    size: int,
    shape: tuple[float, float] | None = None,
    turn: float = TURN,
) -> Scene:
    """A scene of the `chosen` sprites, each rotated by up to `turn` degrees and with shifted hue.

    `size` is its longer side in pixels; `shape` is (height, width) as fractions of it.
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
    """(scene of the `chosen` sprites, `shown` other scenes).

    Each other scene repeats up to `SHOWN` of the objects, among other objects.
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
    """bool `[h, w]`: the pixels of all copies of a sprite; all False where there is none."""
    mask = np.zeros(scene.image.shape[:2], bool)
    for thing in scene.objects:
        if thing.sprite is sprite:
            mask |= thing.mask
    return mask


def company(
    rng: np.random.Generator, sprite: Sprite, sprites: list[Sprite], low: int, high: int
) -> list[Sprite]:
    """`low` to `high` other sprites to draw beside `sprite`.

    With probability 0.5 the first has the same category.
    """
    kin = [s for s in sprites if s.category == sprite.category and s is not sprite]
    chosen = [kin[rng.integers(len(kin))]] if kin and rng.random() < 0.5 else []
    count = int(rng.integers(low, high + 1))
    while len(chosen) < count:
        other = sprites[rng.integers(len(sprites))]
        if other is not sprite and other not in chosen:
            chosen.append(other)
    return chosen
