"""Draws places that somebody named: boxes and points become masks of a SAM decoder; a segmenter
that reads phrases, or a concept segmenter (SAM 3), also draws phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from reasonseg.backbones.speakers.places.reading import Place
from reasonseg.decoders.base import Decoder
from reasonseg.errors import InputError
from reasonseg.nn.cache import ImageCache
from reasonseg.segmenters.base import Segmenter
from reasonseg.segmenters.postprocess import masks_and_scores
from reasonseg.segmenters.prompting import decode_all
from reasonseg.structures.query import Query


@dataclass
class Drawn:
    """Masks bool `[n, h, w]`, scores `[n]` (0..1) and labels; `absent`: the drawer says that there
    is nothing.
    """

    masks: np.ndarray
    scores: np.ndarray
    labels: list[str]
    absent: bool = False


@runtime_checkable
class Drawer(Protocol):
    """Draws on one picture. `reads`: it also draws phrases."""

    reads: bool
    name: str

    def places(self, image: np.ndarray, places: Sequence[Place]) -> Drawn:
        """One mask for each place."""
        ...

    def phrase(self, image: np.ndarray, phrase: str) -> Drawn:
        """All that a phrase names; only where it `reads`."""
        ...

    def forget(self) -> None:
        """Forgets what is kept of pictures."""
        ...


class DecoderDrawer:
    """A mask decoder that takes boxes and points, with or without a language model behind it."""

    def __init__(self, decoder: Decoder, score: str, name: str, segmenter: Segmenter | None = None):
        if "tokens" not in decoder.takes:
            raise InputError(
                f"{name} draws from examples only; name a SAM decoder after the + (such as tiny or "
                "facebook/sam2.1-hiera-small)"
            )
        self.decoder, self.score, self.name, self.segmenter = decoder, score, name, segmenter
        self.reads = segmenter is not None and segmenter.backbone is not None
        self.cache = ImageCache()

    @torch.inference_mode()
    def places(self, image: np.ndarray, places: Sequence[Place]) -> Drawn:
        """As `Drawer.places`; a box and its points prompt one mask together."""
        size = (image.shape[0], image.shape[1])
        labels = [place.label for place in places]
        if not places:
            return Drawn(np.zeros((0, *size), bool), np.zeros(0, np.float32), [])
        features = self.cache(
            [self.decoder], [image], self.decoder.encode, self.decoder.pixels.size
        )
        prompts = [
            self.decoder.places(list(p.points), [p.box] if p.box else [], size) for p in places
        ]
        logits, scores = decode_all(self.decoder, features, [0] * len(prompts), prompts)
        masks, quality = masks_and_scores(self.decoder.restore, logits, scores, size, self.score)
        return Drawn(masks, quality, labels)

    def phrase(self, image: np.ndarray, phrase: str) -> Drawn:
        """As `Drawer.phrase`, by the segmenter."""
        if self.segmenter is None:
            raise InputError(f"{self.name} reads no phrases")
        answer = self.segmenter.batch([Query(image, phrase)])[0]
        return Drawn(
            answer.masks, answer.scores, [phrase] * len(answer.masks), answer.status == "absent"
        )

    def forget(self) -> None:
        """As `Drawer.forget`."""
        self.cache.clear()
        if self.segmenter is not None:
            self.segmenter.forget()
