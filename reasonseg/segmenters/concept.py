"""SAM 3 as a drawer: phrases by its concept segmenter, places by its boxes of examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonseg.backbones.speakers.places.frames import intersection_over_union
from reasonseg.backbones.speakers.places.reading import Place
from reasonseg.decoders.sam3 import Concepts
from reasonseg.segmenters.drawing import Drawn
from reasonseg.structures.masks import box_of
from reasonseg.structures.query import Box

AROUND = 4.0  # pixels around a point that is asked for as a box


class ConceptDrawer:
    """Draws phrases, and of the instances that a box finds the one in that box."""

    reads = True

    def __init__(self, concepts: Concepts, name: str):
        self.concepts, self.name = concepts, name

    def places(self, image: np.ndarray, places: Sequence[Place]) -> Drawn:
        """One mask for each place: of the instances like it, the one that fills the place best."""
        size = (image.shape[0], image.shape[1])
        masks, scores = np.zeros((len(places), *size), bool), np.zeros(len(places), np.float32)
        for k, place in enumerate(places):
            box = place.box or _around(place, size)
            found = self.concepts.find(image, place.label, [box])
            fits = [intersection_over_union(_box(m), box) if m.any() else 0.0 for m in found.masks]
            if fits:
                best = int(np.argmax(fits))
                masks[k], scores[k] = found.masks[best], found.scores[best]
        return Drawn(masks, scores, [place.label for place in places])

    def phrase(self, image: np.ndarray, phrase: str) -> Drawn:
        """All instances of a phrase; `absent` where the model is not sure that there is one."""
        found = self.concepts.find(image, phrase)
        absent = found.presence < self.concepts.threshold
        return Drawn(found.masks, found.scores, [phrase] * len(found.masks), absent)

    def forget(self) -> None:
        """Forgets what is kept of images."""
        self.concepts.forget()


def _box(mask: np.ndarray) -> Box:
    x0, y0, x1, y1 = box_of(mask)
    return float(x0), float(y0), float(x1), float(y1)


def _around(place: Place, size: tuple[int, int]) -> Box:
    x, y, _ = place.points[0]
    return (
        max(x - AROUND, 0.0), max(y - AROUND, 0.0),
        min(x + AROUND, float(size[1])), min(y + AROUND, float(size[0])),
    )  # fmt: skip
