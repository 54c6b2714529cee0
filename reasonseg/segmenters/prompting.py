"""What is asked of a decoder: prompts with their owners, and the small rules around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reasonseg.config.schema import Kind
from reasonseg.nn.prompt import Prompt
from reasonseg.backbones.base import pieces
from reasonseg.structures.query import Reference

PIXELS = 2**24  # of logits at an image's own size that are laid out at once, as float32


@dataclass(frozen=True)
class Shown:
    """What references of one label say."""

    prompt: Prompt
    label: str


@dataclass(frozen=True)
class Asked:
    """One mask to draw: whose `query` it is, its prompt, the probability (`share`) of its `<SEG>`, its label without words."""

    query: int
    prompt: Prompt
    share: float
    label: str = ""


def fitted(kind: Kind | None, backbone: Any, decoder: Any) -> Any:
    """A prompter's settings with the widths that it leaves to its neighbours (0) asked of them."""
    if kind is None:
        return None
    asked = {"width_in": "width", "width_tower": "look_width"}
    widths = {ours: getattr(backbone, theirs, 0) for ours, theirs in asked.items()} | {"width_out": decoder.width}
    return Kind(
        kind.kind, replace(kind.config, **{k: v for k, v in widths.items() if getattr(kind.config, k, None) == 0})
    )


def labels_of(text: str, seg: str, rej: str, question: str) -> list[str]:
    """What each mask is called: the words before its `<SEG>`, or the question where the answer names nothing."""
    labels, words = [], ""
    for piece in pieces(text, (seg, rej)):
        if piece == seg:
            words = words.strip(" ,.:;!?").rsplit(": ", 1)[-1].rsplit(", ", 1)[-1]
            for lead in ("sure", "and", "it is", "it's", "the segmentation result is", "they are", "the", "a", "an"):
                if words.lower() == lead or words.lower().startswith((lead + " ", lead + ",")):
                    words = words[len(lead) :].strip(" ,")
            labels.append(words or question.strip())
            words = ""
        elif piece != rej:
            words = piece.split(". ")[-1]
    return labels


def by_label(references: Sequence[Reference]) -> list[list[Reference]]:
    """References of one label together, in the order in which labels first appear; those without one are one group."""
    groups: dict[str, list[Reference]] = {}
    for reference in references:
        groups.setdefault((reference.label or "").strip(), []).append(reference)
    return list(groups.values())


def distinct(images: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The images without repeats (by identity), and for each of the list which one it is."""
    seen: dict[int, int] = {}
    kept = []
    for image in images:
        if id(image) not in seen:
            seen[id(image)] = len(kept)
            kept.append(image)
    return kept, [seen[id(image)] for image in images]


def finished(
    restore: Callable, logits: torch.Tensor, predicted: torch.Tensor, size: tuple[int, int], score: str
) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool `[n, h, w]` of an image of `size` and their scores 0..1 `[n]`, a few at a time.

    `score`: `predicted` IoU, or the mean probability of the `foreground`.
    """
    step = max(PIXELS // (size[0] * size[1]), 1)
    masks, scores = np.empty((len(logits), *size), bool), predicted.float().clamp(0, 1)
    for start in range(0, len(logits), step):
        full = restore(logits[start : start + step], size)
        masks[start : start + step] = (full > 0).cpu().numpy()
        if score != "predicted":
            marked, shares = (full > 0).flatten(1), full.sigmoid().flatten(1)
            scores[start : start + step] = (shares * marked).sum(1) / marked.sum(1).clamp(min=1)
    return masks, scores.cpu().numpy()
