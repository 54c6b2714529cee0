"""Families of drawn scenes: images with common objects.

All images but the first give references to these objects.
"""

from __future__ import annotations

import numpy as np

from reasonseg.datasets.synthetic.drawing import choose_sprites, draw_shape
from reasonseg.datasets.synthetic.families import draw_family, union_of
from reasonseg.datasets.synthetic.sprites import Sprite
from reasonseg.structures.query import Reference

MARKS = ("mask", "boxes", "points", "scribble")
MARK_CHANCES = (0.7, 0.1, 0.1, 0.1)


class Families:
    """Families by index; family `i` is a pure function of (seed, i).

    A family is a dict with `pictures` (images, uint8 `[h, w, 3]`; the first is the query image) and
    `things`: for each object its `name`, its `label`, its `mask` in the first image and its
    `references`, (index of the other image, `Reference`) each.
    """

    def __init__(
        self,
        sprites: list[Sprite],
        size: int,
        shown: int,
        seed: int,
        length: int,
        same_shape: int,
        marks: tuple = MARKS,
    ):
        self.sprites, self.size, self.shown, self.seed, self.length = (
            sprites,
            size,
            shown,
            seed,
            length,
        )
        self.same_shape, self.marks = same_shape, marks

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, 81, i])
        shape = draw_shape(np.random.default_rng([self.seed, 82, i // self.same_shape]))
        chosen = choose_sprites(rng, self.sprites)
        asked, others = draw_family(rng, self.sprites, self.size, self.shown, chosen, shape)
        things = []
        for sprite in dict.fromkeys(t.sprite for t in asked.objects):
            marked = [(k, union_of(other, sprite)) for k, other in enumerate(others)]
            references = [
                (k, mark(rng, others[k].image, mask, self.marks))
                for k, mask in marked
                if mask.any()
            ]
            if references:
                references = references[: int(rng.integers(1, len(references) + 1))]
                label = (
                    sprite.name
                    if rng.random() < 0.7
                    else str(rng.choice((sprite.name, *sprite.synonyms)))
                )
                things.append(
                    {
                        "name": sprite.name,
                        "label": label,
                        "mask": union_of(asked, sprite),
                        "references": references,
                    }
                )
        return {"pictures": [asked.image, *(o.image for o in others)], "things": things}


def mark(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, marks: tuple = MARKS
) -> Reference:
    """A reference to the object of `mask`, with a random annotation out of `marks`.

    `image` is uint8 `[h, w, 3]`, `mask` bool `[h, w]`.
    """
    kind = MARKS[rng.choice(len(MARKS), p=MARK_CHANCES)]
    kind = kind if kind in marks else "mask"
    if kind == "mask":
        return Reference(image, mask=mask)
    ys, xs = np.nonzero(mask)
    if kind == "boxes":
        return Reference(image, boxes=[(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)])
    if kind == "points":
        picked = rng.integers(len(xs), size=3)
        return Reference(image, points=[(float(xs[p]), float(ys[p]), 1) for p in picked])
    a, b = rng.integers(len(xs), size=2)
    steps = np.linspace(0, 1, 2 * max(image.shape[:2]))
    line = np.zeros_like(mask)
    line[
        np.round(ys[a] + (ys[b] - ys[a]) * steps).astype(int),
        np.round(xs[a] + (xs[b] - xs[a]) * steps).astype(int),
    ] = True
    return Reference(image, scribble=line & mask)
