"""Varied views of photographs for training: cut, mirrored, recoloured, and with things of other
photographs pasted in. All are squares, padded as the models pad.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from reasonseg.datasets.photographs.records import Object, Record

PAD = 127  # near the mean of the models, which pad with it
LEAST = 40  # pixels of a thing that is still worth a question
KEPT = 0.25  # share of a thing that has to be left after a cut


@dataclass(frozen=True)
class View:
    """An image uint8 `[s, s, 3]` and its things, masks bool `[s, s]`.

    `known` are the names of which nothing is there that is not annotated; `present` the names of
    all that is in the photograph, also where little of it is left; `void` `[s, s]` is not scored;
    `content` is the size (height, width) without padding.
    """

    image: np.ndarray
    objects: list[Object]
    known: frozenset[str]
    present: frozenset[str]
    void: np.ndarray
    content: tuple[int, int]


def plain_view(record: Record, size: int) -> View:
    """A photograph as it is, resized so that its longer side is `size`, padded to a square."""
    image = record.image()
    objects, void = record.objects()
    box = (0, 0, image.shape[1], image.shape[0])
    return _framed(image, objects, void, box, size, False, record)


def varied_view(
    record: Record, size: int, rng: np.random.Generator, others: list[Record], paste: float = 0.4
) -> View:
    """A random cut of a photograph; with probability `paste` with things of `others` in it."""
    image = record.image()
    objects, void = record.objects()
    height, width = image.shape[:2]
    box = (0, 0, width, height)
    if rng.random() < 0.6:
        share = np.sqrt(rng.uniform(0.35, 1.0))
        stretch = np.exp(rng.uniform(-0.25, 0.25))
        w = int(np.clip(width * share * stretch, 64, width))
        h = int(np.clip(height * share / stretch, 64, height))
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        box = (x, y, x + w, y + h)
    view = _framed(image, objects, void, box, size, bool(rng.random() < 0.5), record)
    if others and rng.random() < paste:
        for other in others:
            view = _pasted(view, other, rng)
    image, (h, w) = view.image.copy(), view.content
    image[:h, :w] = _recoloured(image[:h, :w], rng)
    return replace(view, image=image)


def _framed(
    image: np.ndarray,
    objects: list[Object],
    void: np.ndarray,
    box: tuple[int, int, int, int],
    size: int,
    mirrored: bool,
    record: Record,
) -> View:
    x0, y0, x1, y1 = box
    scale = size / max(x1 - x0, y1 - y0)
    w, h = max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)

    def fit(values: np.ndarray, filter_: Image.Resampling) -> np.ndarray:
        cut = Image.fromarray(values[y0:y1, x0:x1]).resize((w, h), filter_)
        turned = np.asarray(cut)
        return turned[:, ::-1] if mirrored else turned

    def mask(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((size, size), bool)
        whole[:h, :w] = fit(values.astype(np.uint8) * 255, Image.Resampling.BILINEAR) > 127
        return whole

    canvas = np.full((size, size, 3), PAD, np.uint8)
    canvas[:h, :w] = fit(image, Image.Resampling.BILINEAR)
    kept = []
    for thing in objects:
        inside = thing.mask[y0:y1, x0:x1].sum()
        if inside and (thing.stuff or inside >= KEPT * thing.mask.sum()):
            kept.append(replace(thing, mask=mask(thing.mask)))
    kept = [t for t in kept if t.mask.sum() >= LEAST]
    return View(canvas, kept, record.known, record.names, mask(void), (h, w))


def _pasted(view: View, other: Record, rng: np.random.Generator) -> View:
    """The view with one thing of another photograph in it."""
    size = view.image.shape[0]
    objects, _ = other.objects()
    whole = [o for o in objects if not o.stuff and 0.01 < o.mask.mean() < 0.7]
    if not whole:
        return view
    thing = whole[int(rng.integers(len(whole)))]
    ys, xs = np.nonzero(thing.mask)
    top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
    cut = other.image()[top:bottom, left:right]
    shape = thing.mask[top:bottom, left:right]
    side = max(view.content) * np.exp(rng.uniform(np.log(0.15), np.log(0.6)))
    scale = side / max(shape.shape)
    w, h = max(int(shape.shape[1] * scale), 8), max(int(shape.shape[0] * scale), 8)
    cut = np.asarray(Image.fromarray(cut).resize((w, h), Image.Resampling.BILINEAR))
    soft = Image.fromarray(shape.astype(np.uint8) * 255).resize((w, h), Image.Resampling.BILINEAR)
    share = ndimage.gaussian_filter(np.asarray(soft, np.float32) / 255, rng.uniform(0.3, 1.2))
    if rng.random() < 0.5:
        cut, share = cut[:, ::-1], share[:, ::-1]
    high, wide = view.content
    y = int(rng.integers(-h // 4, max(high - h // 2, 1)))
    x = int(rng.integers(-w // 4, max(wide - w // 2, 1)))
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + h, high), min(x + w, wide)
    if y1 - y0 < 8 or x1 - x0 < 8:
        return view
    part = share[y0 - y : y1 - y, x0 - x : x1 - x, None]
    image = view.image.copy()
    mixed = part * cut[y0 - y : y1 - y, x0 - x : x1 - x] + (1 - part) * image[y0:y1, x0:x1]
    image[y0:y1, x0:x1] = mixed.astype(np.uint8)
    mine = np.zeros((size, size), bool)
    mine[y0:y1, x0:x1] = part[..., 0] > 0.5
    hidden = [replace(o, mask=o.mask & ~mine) for o in view.objects]
    kept = [
        h for h, o in zip(hidden, view.objects, strict=True)
        if h.mask.sum() >= max(LEAST, KEPT * o.mask.sum())
    ]  # fmt: skip
    if mine.sum() >= LEAST:
        kept.append(replace(thing, mask=mine))
    return replace(
        view, image=image, objects=kept, present=view.present | other.names, void=view.void & ~mine
    )


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small random changes of brightness, contrast and the balance of colours."""
    values = image.astype(np.float32)
    gain, shift = rng.uniform(0.75, 1.3), rng.uniform(-20, 20)
    values = (values - 127) * gain + 127 + shift
    values *= rng.uniform(0.93, 1.07, 3).astype(np.float32)
    if rng.random() < 0.15:
        values = ndimage.gaussian_filter(values, (1.0, 1.0, 0))
    return np.clip(values, 0, 255).astype(np.uint8)
