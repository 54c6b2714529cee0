"""What may follow an answer: how far each reference agrees with it, and sharper edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from reasonseg.errors import InputError
from reasonseg.structures.masks import box_of
from reasonseg.nn.prompt import Prompt
from reasonseg.structures.query import Answer, Query

AT_ONCE = 32  # questions


def agree(segmenter, queries: Sequence[Query], answers: list[Answer], how: dict) -> None:
    """Adds `agreement` to the references of each answer: IoU of all its masks with those of the reference alone."""
    alone = [(i, k) for i, q in enumerate(queries) for k in range(len(q.references))]
    single = [replace(queries[i], references=[queries[i].references[k]]) for i, k in alone]
    for start in range(0, len(single), AT_ONCE):
        for (i, k), answer in zip(
            alone[start:], segmenter.answered(single[start : start + AT_ONCE], how), strict=False
        ):
            both = answer.masks.any(0), answers[i].masks.any(0)
            union = int((both[0] | both[1]).sum())
            value = int((both[0] & both[1]).sum()) / union if union else 1.0
            answers[i].references[k]["agreement"] = round(value, 4)


def refine(segmenter, queries: Sequence[Query], answers: list[Answer]) -> None:
    """Draws every mask again with the refiner, from the mask itself and its box."""
    if segmenter.refiner is None:
        raise InputError("this model has no refiner; load it with a SAM as sam (--sam) to sharpen what SegGPT paints")
    for query, answer in zip(queries, answers, strict=True):
        whole = [m for m, mask in enumerate(answer.masks) if mask.any()]
        if not whole:
            continue
        features = segmenter.cache(
            [segmenter.refiner], [query.image], segmenter.refiner.encode, segmenter.refiner.pixels.size
        )
        prompts = []
        for m in whole:
            box = box_of(answer.masks[m])
            places = segmenter.refiner.places([], [(box[0], box[1], box[2], box[3])], query.size)
            prompts.append(Prompt(places.tokens, segmenter.refiner.dense(answer.masks[m])))
        of = torch.zeros(len(whole), dtype=torch.long, device=segmenter.device)
        logits, _ = segmenter.refiner.decode(features, of, Prompt.joined(prompts))
        answer.masks[whole] = (segmenter.refiner.restore(logits, query.size) > 0).cpu().numpy()
