"""What may follow an answer: how far each reference agrees with it, and sharper edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from reasonseg.checkpoints.parts import Parts
from reasonseg.errors import InputError
from reasonseg.nn.cache import ImageCache
from reasonseg.nn.prompt import Prompt
from reasonseg.structures.answer import Answer
from reasonseg.structures.masks import box_of
from reasonseg.structures.query import Query

AT_ONCE = 32  # questions


def add_agreement(
    ask: Callable[[list[Query]], list[Answer]], queries: Sequence[Query], answers: Sequence[Answer]
) -> None:
    """Adds `agreement` to the references of each answer: IoU of all its masks with those of the
    reference alone.

    `ask` answers up to `AT_ONCE` queries.
    """
    alone = [(i, k) for i, q in enumerate(queries) for k in range(len(q.references))]
    single = [replace(queries[i], references=[queries[i].references[k]]) for i, k in alone]
    for start in range(0, len(single), AT_ONCE):
        for (i, k), answer in zip(
            alone[start:], ask(single[start : start + AT_ONCE]), strict=False
        ):
            both = answer.masks.any(0), answers[i].masks.any(0)
            union = int((both[0] | both[1]).sum())
            value = int((both[0] & both[1]).sum()) / union if union else 1.0
            answers[i].references[k]["agreement"] = round(value, 4)


def refine(
    parts: Parts, cache: ImageCache, queries: Sequence[Query], answers: Sequence[Answer]
) -> None:
    """Draws every mask again with the refiner, from the mask itself and its box. Raises
    `InputError` where there is none.
    """
    refiner = parts.refiner
    if refiner is None:
        raise InputError(
            "this model has no refiner; load it with a SAM as sam (--sam) to sharpen what SegGPT "
            "paints"
        )
    for query, answer in zip(queries, answers, strict=True):
        whole = [m for m, mask in enumerate(answer.masks) if mask.any()]
        if not whole:
            continue
        features = cache([refiner], [query.image], refiner.encode, refiner.pixels.size)
        prompts = []
        for m in whole:
            x0, y0, x1, y1 = box_of(answer.masks[m])
            places = refiner.places([], [(x0, y0, x1, y1)], query.size)
            prompts.append(Prompt(places.tokens, refiner.dense(answer.masks[m])))
        image_index = torch.zeros(len(whole), dtype=torch.long, device=parts.device)
        logits, _ = refiner.decode(features, image_index, Prompt.joined(prompts))
        answer.masks[whole] = (refiner.restore(logits, query.size) > 0).cpu().numpy()
