"""From mask logits and generated words to an `Answer`: masks at image size, scores, labels,
status.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from reasonseg.backbones.base import GeneratedOutput
from reasonseg.nn.shapes import Bool, Float
from reasonseg.structures.answer import Answer
from reasonseg.structures.markers import Markers, pieces
from reasonseg.structures.query import Query

PIXELS = 2**24  # of logits at an image's own size that are laid out at once, as float32
LEADS = ("sure", "and", "it is", "it's", "the segmentation result is", "they are", "the", "a", "an")


def masks_and_scores(
    restore: Callable,
    logits: Float[Tensor, "n s s"],
    predicted: Float[Tensor, " n"],
    size: tuple[int, int],
    score: str,
) -> tuple[Bool[np.ndarray, "n h w"], Float[np.ndarray, " n"]]:
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


def labels_of(text: str, seg: str, rej: str, question: str) -> list[str]:
    """What each mask is called: the words before its `<SEG>`, or the question where the answer
    names nothing.
    """
    labels, words = [], ""
    for piece in pieces(text, (seg, rej)):
        if piece == seg:
            words = words.strip(" ,.:;!?").rsplit(": ", 1)[-1].rsplit(", ", 1)[-1]
            for lead in LEADS:
                if words.lower() == lead or words.lower().startswith((lead + " ", lead + ",")):
                    words = words[len(lead) :].strip(" ,")
            labels.append(words or question.strip())
            words = ""
        elif piece != rej:
            words = piece.split(". ")[-1]
    return labels


def make_answer(
    query: Query,
    output: GeneratedOutput | None,
    markers: Markers | None,
    masks: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    meta: dict[str, Any],
) -> Answer:
    """The answer to a query; `output` and `markers` are None where no words were generated,
    `labels` are then the masks'.
    """
    whole = sum(r.weight for r in query.references)
    used = [
        {"name": r.name, "label": r.label or "", "weight": round(r.weight / whole, 4)}
        for r in query.references
    ]
    common: dict[str, Any] = {"references": used, "meta": meta, "image": query.image}
    if output is None or markers is None:
        return Answer("", masks, scores, list(labels), "found", **common)
    refused = markers.rej is not None and markers.rej in output.ids
    status = "found" if len(masks) else "absent" if refused else "no_seg"
    names = labels_of(output.text, markers.seg_text, markers.rej_text, query.text)
    return Answer(output.text, masks, scores, names, status, **common)
