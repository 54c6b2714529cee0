"""Prompts: the input of a mask decoder beside its image features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reasonseg.errors import InputError


@dataclass(eq=False)
class Canvas:
    """Reference images and their painted masks for an in-context decoder (SegGPT).

    - `images`, `targets`: k images and their painted masks `[k, 3, s, s]`, normalised.
    - `colors`: `[labels + 1, 3]`, 0..1, the background's first.
    - `weights`: `[k]`, with sum 1.
    - `ensemble`: `feature` reads the references together inside the network, `spatial` side by side
      in one image, `mean` one by one and averages the painted results.
    - `arrangements`: 1 to 8 turns and flips of the whole canvas are painted, undone and averaged.
    - `type`: whether masks are of single things (`instance`) or of all things of a kind
      (`semantic`).
    """

    images: torch.Tensor
    targets: torch.Tensor
    colors: torch.Tensor
    weights: torch.Tensor
    ensemble: str = "feature"
    arrangements: int = 1
    type: str = "instance"


@dataclass(frozen=True)
class CanvasFrame:
    """The canvas layout of an in-context decoder.

    `images` converts uint8 `[h, w, 3]` images to normalised `[k, 3, s, s]`. `normalised` does the
    same for colours 0..1 `[k, 3, s, s]`.
    """

    images: Callable[[list[np.ndarray]], torch.Tensor]
    normalised: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Painted:
    """One mask of a canvas; `number` is that of its label, from 0."""

    canvas: Canvas
    number: int = 0


@dataclass
class Prompt:
    """Prompts of n masks: tokens `[n, k, d]`, and an optional dense mask.

    `dense` `[n, 1, h, w]` are logits to start from. For an in-context decoder there are no tokens;
    `examples` then holds the canvas and label of each of the n masks. Raises `InputError` where
    shapes do not fit.
    """

    tokens: torch.Tensor
    dense: torch.Tensor | None = None
    examples: tuple[Painted, ...] = ()

    def __post_init__(self):
        if self.tokens.ndim != 3:
            raise InputError(f"Prompt.tokens must be [n, k, d], got {list(self.tokens.shape)}")
        if self.dense is not None and (
            self.dense.ndim != 4 or self.dense.shape[:2] != (len(self.tokens), 1)
        ):
            raise InputError(
                f"Prompt.dense must be [{len(self.tokens)}, 1, h, w] beside its tokens, got "
                f"{list(self.dense.shape)}"
            )
        if self.examples and len(self.examples) != len(self.tokens):
            raise InputError(
                f"{len(self.examples)} examples for {len(self.tokens)} masks; give one for each"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def kind(self) -> tuple:
        """Prompts of one kind can be `joined`: as many tokens per mask, all dense or none."""
        return self.tokens.shape[1], self.dense is None, bool(self.examples)

    def beside(self, other: Prompt) -> Prompt:
        """The tokens of both prompts concatenated along k, for the same n masks.

        Raises `InputError` where n differs.
        """
        if len(self) != len(other):
            raise InputError(f"prompts for {len(self)} and {len(other)} masks cannot be combined")
        dense = self.dense if other.dense is None else other.dense
        return Prompt(torch.cat([self.tokens, other.tokens.to(self.tokens)], 1), dense)

    @staticmethod
    def joined(prompts: Sequence[Prompt]) -> Prompt:
        """Prompts of one kind as one prompt, mask after mask."""
        dense = (
            None
            if prompts[0].dense is None
            else torch.cat([p.dense for p in prompts if p.dense is not None])
        )
        examples = tuple(e for p in prompts for e in p.examples)
        return Prompt(torch.cat([p.tokens for p in prompts]), dense, examples)


def palette(labels: int) -> torch.Tensor:
    """Colours 0..1 `[labels + 1, 3]`, black first.

    The scheme is that of transformers' SegGPT processor, so that both give the same prompts.
    """
    base = int(labels ** (1 / 3)) + 1
    step = 256 // base
    rows = [(0, 0, 0)]
    for k in range(labels):
        rows.append(
            (255 - k // base**2 * step, 255 - k % base**2 // base * step, 255 - k % base * step)
        )
    return torch.tensor(rows) / 255
