"""Draws a scene: sprites of given colour, size, rotation and place on a background, with masks.

All lengths of a layout are fractions of the longer side of the image, so the same layout can be
drawn at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageEnhance

from reasonseg.datasets.synthetic.sprites import HUES, Sprite

SCALES = (0.22, 0.46)  # range of the longer side of a sprite
MIN_VISIBLE = 0.6  # visible fraction; sprites that are covered more are left out
MAX_TRIES = 12


@dataclass
class SceneObject:
    """One object in a scene.

    `mask` is bool `[h, w]`, its visible part; `area` is the fraction (0..1) of the image that it
    takes, covered parts included. `color` is the word for its drawn colour, or None.
    """

    sprite: Sprite
    color: str | None
    upside_down: bool
    area: float
    mask: np.ndarray

    @property
    def name(self) -> str:
        """The name of the object."""
        return self.sprite.name

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """`(x0, y0, x1, y1)` in pixels around the visible part."""
        ys, xs = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1

    @property
    def center(self) -> tuple[float, float]:
        """`(x, y)` of the centre of the box, as fractions of the longer side of the image."""
        x0, y0, x1, y1 = self.box
        side = max(self.mask.shape)
        return (x0 + x1) / 2 / side, (y0 + y1) / 2 / side


@dataclass
class Scene:
    """An image, uint8 RGB `[h, w, 3]`, and its objects from back to front."""

    image: np.ndarray
    objects: list[SceneObject]


@dataclass(frozen=True)
class Placement:
    """Where and how one sprite is drawn.

    `x` and `y` are its centre and `scale` its longer side, as fractions of the longer side of the
    image; `angle` is its rotation in degrees. `degrees` is the shift of its hues where it has no
    `color`.
    """

    sprite: Sprite
    color: str | None
    upside_down: bool
    x: float
    y: float
    scale: float
    angle: float
    degrees: float = 0.0


def draw_scene(
    rng: np.random.Generator,
    sprites: list[Sprite],
    size: int,
    crowd: int = 0,
    shape: tuple[float, float] | None = None,
) -> Scene:
    """A scene of objects from `sprites`; its longer side is `size` pixels.

    Equal states of `rng` give equal layouts. `crowd` above 0 draws that many random objects instead
    of a few that suit questions. `shape` is (height, width) as fractions of `size`; it is random
    where it is None.
    """
    height, width = (round(size * side) for side in shape or draw_shape(rng))
    chosen = (
        [sprites[i] for i in rng.integers(len(sprites), size=crowd)]
        if crowd
        else choose_sprites(rng, sprites)
    )
    return paint_scene(rng, lay_out(rng, chosen, height / size, width / size), size, height, width)


def paint_scene(
    rng: np.random.Generator, layout: list[Placement], size: int, height: int, width: int
) -> Scene:
    """A layout drawn on a random background of `height` x `width` pixels, with random light."""
    light = rng.uniform(0.75, 1.15), rng.uniform(0.85, 1.1)
    canvas = _background(rng, height, width)
    return _paint(canvas, layout, size, light)


def draw_shape(rng: np.random.Generator) -> tuple[float, float]:
    """A random (height, width) as fractions of the longer side, 0.65..1.

    Half of them are square; of the others more are landscape than portrait.
    """
    aspect = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.65, 1.0))
    return (1.0, aspect) if rng.random() < 0.4 else (aspect, 1.0)


def choose_sprites(rng: np.random.Generator, sprites: list[Sprite]) -> list[Sprite]:
    """Two to six random sprites.

    Often several have the same name or category, so that a question must distinguish them.
    """
    count = min(int(rng.choice([2, 3, 4, 5, 6], p=[0.15, 0.25, 0.3, 0.2, 0.1])), len(sprites))
    chosen: list[Sprite] = []
    if rng.random() < 0.65:
        twin = sprites[rng.integers(len(sprites))]
        chosen += [twin] * int(rng.choice([2, 3], p=[0.75, 0.25]))
    if rng.random() < 0.5:
        category = (chosen or [sprites[rng.integers(len(sprites))]])[0].category
        kin = [s for s in sprites if s.category == category and s not in chosen]
        for i in rng.permutation(len(kin))[: int(rng.integers(1, 4))]:
            chosen.append(kin[i])
    while len(chosen) < count:
        other = sprites[rng.integers(len(sprites))]
        if other not in chosen:
            chosen.append(other)
    chosen = chosen[: max(count, 3)]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def lay_out(
    rng: np.random.Generator, chosen: list[Sprite], height: float, width: float
) -> list[Placement]:
    """Random placements of sprites, apart from each other where there is room.

    Each has its own colour, size and rotation. `height` and `width` are fractions of the longer
    side of the image.
    """
    placed: list[Placement] = []
    shrink = 1.0 if len(chosen) <= 4 else 0.85
    for sprite in chosen:
        color = None
        if sprite.hue is not None:
            color = str(rng.choice(list(HUES))) if rng.random() < 0.75 else None
        scale = shrink * float(np.exp(rng.uniform(*np.log(SCALES))))
        scale = min(scale, 0.9 * min(height, width))
        upside_down = bool(rng.random() < 0.2)
        angle = float(rng.uniform(-20, 20)) + 180 * upside_down
        best, best_gap = (0.0, 0.0), -np.inf
        for _ in range(MAX_TRIES):
            x = float(rng.uniform(scale / 2, width - scale / 2))
            y = float(rng.uniform(scale / 2, height - scale / 2))
            gap = min(
                (np.hypot(x - p.x, y - p.y) - 0.5 * (scale + p.scale) for p in placed), default=1.0
            )
            if gap > best_gap:
                best, best_gap = (x, y), gap
            if gap > rng.uniform(-0.12, 0.0):
                break
        placed.append(Placement(sprite, color, upside_down, *best, scale, angle))
    return placed


def _paint(
    canvas: np.ndarray, layout: list[Placement], size: int, light: tuple[float, float]
) -> Scene:
    picture = Image.fromarray(canvas)
    owner = np.full(canvas.shape[:2], -1, np.int8)
    whole = []
    for i, place in enumerate(layout):
        cutout = _cutout(place, size)
        x0 = round(place.x * size - cutout.width / 2)
        y0 = round(place.y * size - cutout.height / 2)
        picture.paste(cutout, (x0, y0), cutout)
        opaque = np.array(cutout.getchannel("A")) > 127
        ys, xs = slice(max(y0, 0), y0 + cutout.height), slice(max(x0, 0), x0 + cutout.width)
        window = owner[ys, xs]
        inside = opaque[max(-y0, 0) :, max(-x0, 0) :][: window.shape[0], : window.shape[1]]
        window[inside] = i
        whole.append(int(opaque.sum()))
    picture = ImageEnhance.Brightness(picture).enhance(light[0])
    picture = ImageEnhance.Contrast(picture).enhance(light[1])
    objects = []
    for i, place in enumerate(layout):
        mask = owner == i
        if mask.sum() >= max(MIN_VISIBLE * whole[i], 1):
            color = place.color or (place.sprite.colors[0] if place.sprite.colors else None)
            area = whole[i] / owner.size
            objects.append(SceneObject(place.sprite, color, place.upside_down, area, mask))
    return Scene(np.array(picture), objects)


def _cutout(place: Placement, size: int) -> Image.Image:
    sprite = place.sprite.tinted(place.color, place.degrees)
    factor = max(place.scale * size / max(sprite.size), 1 / min(sprite.size))
    shape = max(round(sprite.width * factor), 1), max(round(sprite.height * factor), 1)
    return sprite.resize(shape, Image.Resampling.BILINEAR).rotate(
        place.angle, Image.Resampling.BILINEAR, expand=True
    )


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 `[height, width, 3]`: a gradient with stripes, checks, blobs or grain over it."""
    low, high = rng.integers(30, 256, (2, 3))
    if rng.random() < 0.5:  # less saturated, as in most photos
        low, high = (0.4 * c + 0.6 * c.mean() for c in (low, high))
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(height, width)
    turn = rng.uniform(0, 2 * np.pi)
    along = np.cos(turn) * x + np.sin(turn) * y
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    kind = rng.integers(5)
    if kind == 1:
        along = (np.floor(along * rng.integers(3, 12)) % 2) * 0.6 + 0.2 * along
    elif kind == 2:
        cells = rng.integers(3, 10)
        along = 0.7 * ((np.floor(x * cells) + np.floor(y * cells)) % 2) + 0.3 * along
    elif kind == 3:
        coarse = Image.fromarray(
            rng.integers(0, 256, (rng.integers(3, 9), rng.integers(3, 9)), dtype=np.uint8)
        )
        along = (
            np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        )
    canvas = low + (high - low) * along[..., None]
    if kind == 4 or rng.random() < 0.3:
        canvas = canvas + rng.normal(0, rng.uniform(3, 18), (height, width, 1))
    return np.clip(canvas, 0, 255).astype(np.uint8)
