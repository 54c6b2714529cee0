"""References for a decoder that learns in context (SegGPT): painted beside their pictures on a
canvas.

Fusion after prompt-SelF: the eight arrangements of a canvas and several references, weighted, make
one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from reasonseg.errors import InputError
from reasonseg.nn.cache import ImageCache
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.prompt import Canvas, CanvasFrame, Painted, Prompt, palette
from reasonseg.prompters.base import Group, Makes
from reasonseg.structures.query import Reference
from reasonseg.structures.reference_masks import region


@dataclass(frozen=True)
class Config:
    """`ensemble`: how several references are read: `feature` together inside the network, `spatial`
    side by side in one picture, `mean` one by one. `arrangements` 1 to 8: turns and flips of the
    canvas that are painted, undone and averaged.

    `type`: masks of single things (`instance`) or of all of a kind (`semantic`). `together` paints
    several labels at once, in a colour each, where else every label has a canvas of its own.
    """

    ensemble: Literal["feature", "spatial", "mean"] = "feature"
    arrangements: int = 1
    type: Literal["instance", "semantic"] = "instance"
    together: bool = False

    def __post_init__(self):
        if not 1 <= self.arrangements <= 8:
            raise InputError(f"arrangements: {self.arrangements} is not 1 to 8")

    def build(self) -> Examples:
        """The prompter; it has no weights."""
        return Examples(self)

    @classmethod
    def example(cls) -> Config:
        """One for tests."""
        return cls(ensemble="mean", arrangements=2)


class Examples(nn.Module):
    """References to canvases."""

    makes: Makes = "examples"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self._canvas_of: CanvasFrame
        self._encoder: PatchEncoder

    def bind(self, backbone: Any, decoder: Any) -> None:
        """Takes the decoder's canvas. Raises `InputError` where it paints none."""
        self._canvas_of, self._encoder = decoder.canvas_frame, decoder.patch_encoder

    @property
    def width_out(self) -> int:
        """0: it makes no tokens."""
        return 0

    @property
    def patch_encoder(self) -> PatchEncoder:
        """The decoder's patch features of an image read beside itself."""
        return self._encoder

    def patch_features(self, images: list[np.ndarray]) -> torch.Tensor:
        """Features `[b, t, c]` of the patches of images, to compare pictures by."""
        return self._encoder.encode(images)

    def placed(self, features: torch.Tensor) -> torch.Tensor:
        """Unit features."""
        return nn.functional.normalize(features.float(), dim=-1)

    def frame(self, mask: np.ndarray) -> torch.Tensor:
        """A reference's mask `[h, w]` in the decoder's frame, bool `[s, s]`."""
        return self._encoder.image_processor.mask(mask, squash=True)

    def prompts(
        self, groups: Sequence[Group], cache: ImageCache, owners: Sequence[int] | None = None
    ) -> list[Prompt]:
        """One prompt for each (picture, references of one thing); `owners` say which groups are
        of one question.
        """
        if not self.config.together:
            return [self._prompt(self._canvas([references]), 0) for _, references in groups]
        questions: dict[int, list[int]] = {}
        for i, owner in enumerate(range(len(groups)) if owners is None else owners):
            questions.setdefault(owner, []).append(i)
        prompts = {}
        for mine in questions.values():
            canvas = self._canvas([groups[i][1] for i in mine])
            prompts |= {i: self._prompt(canvas, number) for number, i in enumerate(mine)}
        return [prompts[i] for i in range(len(groups))]

    def _prompt(self, canvas: Canvas, number: int) -> Prompt:
        return Prompt(canvas.images.new_zeros(1, 0, 0), examples=(Painted(canvas, number),))

    def _canvas(self, labels: list[list[Reference]]) -> Canvas:
        """One canvas for all labels: a picture that refers to several has each in its colour."""
        colors = palette(len(labels))
        images, painted, weights = {}, {}, {}
        for number, references in enumerate(labels):
            for reference in references:
                key = id(reference.image)
                images[key] = reference.image
                canvas = painted.setdefault(
                    key, torch.zeros_like(self.frame(region(reference)), dtype=torch.long)
                )
                canvas[self.frame(region(reference))] = number + 1
                weights[key] = weights.get(key, 0.0) + reference.weight
        pictures = self._canvas_of.images(list(images.values()))
        targets = torch.stack([colors[canvas].permute(2, 0, 1) for canvas in painted.values()]).to(
            pictures.device
        )
        shares = torch.tensor(list(weights.values())) / sum(weights.values())
        how = (self.config.ensemble, self.config.arrangements, self.config.type)
        return Canvas(
            pictures,
            self._canvas_of.normalised(targets),
            colors.to(pictures),
            shares.to(pictures),
            *how,
        )

    def learned(self) -> dict[str, torch.Tensor]:
        """Nothing: it has no weights."""
        return {}

    def save(self, folder: Path) -> None:
        """Nothing: it has no weights and no files."""
