"""What a prompter hands to a decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reasonseg.errors import InputError


@dataclass
class Prompt:
    """Tokens `[n, k, d]` for n masks of k tokens each, and maybe a dense mask `[n, 1, h, w]` (logits) to start from."""

    tokens: torch.Tensor
    dense: torch.Tensor | None = None

    def __post_init__(self):
        if self.tokens.ndim != 3:
            raise InputError(f"Prompt.tokens must be [n, k, d], got {list(self.tokens.shape)}")
        if self.dense is not None and (self.dense.ndim != 4 or self.dense.shape[:2] != (len(self.tokens), 1)):
            raise InputError(
                f"Prompt.dense must be [{len(self.tokens)}, 1, h, w] beside its tokens, got {list(self.dense.shape)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def beside(self, other: Prompt) -> Prompt:
        """Both prompts' tokens side by side along k, for the same n masks."""
        if len(self) != len(other):
            raise InputError(f"prompts for {len(self)} and {len(other)} masks cannot stand side by side")
        dense = self.dense if other.dense is None else other.dense
        return Prompt(torch.cat([self.tokens, other.tokens.to(self.tokens)], 1), dense)
