"""What a prompter hands to a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reasonseg.errors import InputError


@dataclass(eq=False)
class Canvas:
    """References for a decoder that learns in context: k pictures and their painted masks `[k, 3,
    s, s]`, normalised.

    `colors` `[labels + 1, 3]` 0..1, the background's first; `weights` `[k]` add to 1. `ensemble`:
    `feature` reads them together inside the network, `spatial` side by side in one picture, `mean`
    one by one and averages what they paint. `arrangements` (1 to 8) turns and flips of the whole
    are painted, undone and averaged. `type`: whether masks are of single things (`instance`) or of
    all of a kind (`semantic`).
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
    """How a decoder that learns in context lays out its canvas.

    `images` takes uint8 `[h, w, 3]` images to normalised `[k, 3, s, s]`, `normalised` colours 0..1
    `[k, 3, s, s]` likewise.
    """

    images: Callable[[list[np.ndarray]], torch.Tensor]
    normalised: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Painted:
    """One mask of a canvas: its label's `number`, from 0."""

    canvas: Canvas
    number: int = 0


@dataclass
class Prompt:
    """Tokens `[n, k, d]` for n masks of k tokens each, and maybe a dense mask `[n, 1, h, w]`
    (logits) to start from.

    Where a decoder learns in context there are no tokens; `examples` then holds what each of the n
    masks is drawn after.
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
                f"{len(self.examples)} examples do not go with {len(self.tokens)} masks"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def kind(self) -> tuple:
        """Prompts of one kind can be `joined`: as many tokens a mask, all dense or none."""
        return self.tokens.shape[1], self.dense is None, bool(self.examples)

    def beside(self, other: Prompt) -> Prompt:
        """Both prompts' tokens side by side along k, for the same n masks."""
        if len(self) != len(other):
            raise InputError(
                f"prompts for {len(self)} and {len(other)} masks cannot stand side by side"
            )
        dense = self.dense if other.dense is None else other.dense
        return Prompt(torch.cat([self.tokens, other.tokens.to(self.tokens)], 1), dense)

    @staticmethod
    def joined(prompts: Sequence[Prompt]) -> Prompt:
        """Prompts of one kind as one, mask after mask."""
        dense = (
            None
            if prompts[0].dense is None
            else torch.cat([p.dense for p in prompts if p.dense is not None])
        )
        examples = tuple(e for p in prompts for e in p.examples)
        return Prompt(torch.cat([p.tokens for p in prompts]), dense, examples)


def palette(labels: int) -> torch.Tensor:
    """Colours 0..1 `[labels + 1, 3]`, black first; the scheme of transformers' SegGPT processor,
    so that its prompts agree.
    """
    base = int(labels ** (1 / 3)) + 1
    step = 256 // base
    rows = [(0, 0, 0)]
    for k in range(labels):
        rows.append(
            (255 - k // base**2 * step, 255 - k % base**2 // base * step, 255 - k % base * step)
        )
    return torch.tensor(rows) / 255
