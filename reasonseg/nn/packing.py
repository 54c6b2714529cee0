"""Several conversations about one image in one row: their common prefix is computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100  # the label of a token that no loss counts


@dataclass
class Pack:
    """Several conversations in one row: common prefix (segment 0), then each rest (1, 2, ...)."""

    ids: list[int]
    positions: list[int]
    labels: list[int]  # the id to predict next; IGNORED where it is not trained
    segments: list[int]  # -1 is padding

    FILL = {"ids": 0, "positions": 0, "labels": IGNORED, "segments": -1}

    @classmethod
    def of(cls, turns: list[tuple[list[int], list[int], int]], image_id: int, patches: int) -> Pack:
        """Packs conversations (prompt ids, answer ids, number of answer ids that are not trained).

        Their prompts must be equal up to the end of the image.
        """
        first = turns[0][0]
        cut = first.index(image_id) + patches
        pack = cls(first[:cut], list(range(cut)), [IGNORED] * cut, [0] * cut)
        for number, (prompt, answer, silent) in enumerate(turns, 1):
            rest = prompt[cut:] + answer
            pack.ids += rest
            pack.positions += range(cut, cut + len(rest))
            pack.labels += (
                [IGNORED] * (len(prompt) - cut - 1 + silent) + answer[silent:] + [IGNORED]
            )
            pack.segments += [number] * len(rest)
        return pack

    def padded(self, name: str, length: int) -> np.ndarray:
        """The list `name`, padded to `length`, as an array `[length]`."""
        values = getattr(self, name)
        return np.array(values + [self.FILL[name]] * (length - len(values)))


def packed_mask(segments: torch.Tensor) -> torch.Tensor:
    """The attention mask bool `[b, 1, t, t]` of packed rows, from segments `[b, t]`.

    A token attends to earlier tokens of its own segment and of segment 0.
    """
    t = segments.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    return (causal & (same | (segments == 0)[:, None, :]))[:, None]
