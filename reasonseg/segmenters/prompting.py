"""From what was said and shown to what is drawn: one prompt a mask, and the question that each
belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasonseg.backbones.base import GeneratedOutput
from reasonseg.checkpoints.parts import Parts
from reasonseg.decoders.base import Decoder
from reasonseg.nn.features import Features
from reasonseg.nn.prompt import Prompt
from reasonseg.nn.shapes import Float
from reasonseg.structures.query import Query, Reference


@dataclass(frozen=True)
class ReferencePrompt:
    """The prompt (n = 1) that references of one label make."""

    prompt: Prompt
    label: str


@dataclass(frozen=True)
class MaskRequest:
    """One mask to draw: which `query` wants it, its prompt (n = 1), the `probability` 0..1 of its
    `<SEG>`, its label.

    `label` is empty where the words of the answer will name the mask.
    """

    query: int
    prompt: Prompt
    probability: float
    label: str = ""


def by_label(references: Sequence[Reference]) -> list[list[Reference]]:
    """References of one label together, in the order in which labels first appear; those without
    one are one group.
    """
    groups: dict[str, list[Reference]] = {}
    for reference in references:
        groups.setdefault((reference.label or "").strip(), []).append(reference)
    return list(groups.values())


def distinct(images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The images without repeats (by identity), and for each of the list which one it is."""
    seen: dict[int, int] = {}
    kept = []
    for image in images:
        if id(image) not in seen:
            seen[id(image)] = len(kept)
            kept.append(image)
    return kept, [seen[id(image)] for image in images]


def reference_prompts(
    parts: Parts, queries: Sequence[Query], cache: Any
) -> dict[int, list[ReferencePrompt]]:
    """The prompts of the references of each query that has some: one a label, or a single one
    beside words.
    """
    having = [i for i, q in enumerate(queries) if q.references]
    if not having or parts.references is None:
        return {}
    groups, owners = [], []
    for i in having:
        query = queries[i]
        mine = [list(query.references)] if query.text.strip() else by_label(query.references)
        groups += [(query.image, group) for group in mine]
        owners += [i] * len(mine)
    prompts = parts.references.prompts(groups, cache, owners)
    found: dict[int, list[ReferencePrompt]] = {i: [] for i in having}
    for i, (_, group), prompt in zip(owners, groups, prompts, strict=True):
        found[i].append(ReferencePrompt(prompt, group[0].label or ""))
    return found


def mask_requests(
    parts: Parts,
    number: int,
    query: Query,
    output: GeneratedOutput | None,
    shown: Sequence[ReferencePrompt],
) -> list[MaskRequest]:
    """The masks that query `number` wants. References stand beside every `<SEG>`, points and boxes
    beside the first.

    Without words the references are the prompts, and without those the points and boxes.
    """
    places = None
    if query.points or query.boxes:
        places = parts.decoder.places(list(query.points), list(query.boxes), query.size)
    if output is not None:
        requests = spoken_requests(parts, number, output)
        requests = (
            [replace(r, prompt=r.prompt.beside(shown[0].prompt)) for r in requests]
            if shown
            else requests
        )
    elif shown:
        requests = [MaskRequest(number, s.prompt, 1.0, s.label) for s in shown]
    elif places is not None:
        requests, places = [MaskRequest(number, places, 1.0)], None
    else:
        requests = []
    if requests and places is not None:
        requests[0] = replace(requests[0], prompt=requests[0].prompt.beside(places))
    if requests and query.previous is not None:
        prompt = Prompt(requests[0].prompt.tokens, parts.decoder.dense(query.previous))
        requests[0] = replace(requests[0], prompt=prompt)
    return requests


def spoken_requests(parts: Parts, number: int, output: GeneratedOutput) -> list[MaskRequest]:
    """One mask for each `<SEG>` of a generated answer."""
    backbone, prompter = parts.language()
    positions = [t for t, token in enumerate(output.ids) if token == backbone.markers.seg]
    states = output.states[[t + (prompter.config.at == "at") for t in positions]]
    tokens = prompter(states).tokens
    return [
        MaskRequest(number, Prompt(tokens[m : m + 1]), output.probabilities[t])
        for m, t in enumerate(positions)
    ]


def decode_all(
    decoder: Decoder, features: Features, image_index: Sequence[int], prompts: Sequence[Prompt]
) -> tuple[Float[Tensor, "n s s"], Float[Tensor, " n"]]:
    """Logits `[n, side, side]` and scores `[n]` of prompts on images `image_index`; prompts of a
    kind are decoded together.
    """
    groups: dict[object, list[int]] = {}
    for m, prompt in enumerate(prompts):
        groups.setdefault(prompt.kind, []).append(m)
    device = next(decoder.parameters()).device
    decoded, order = [], []
    for members in groups.values():
        index = torch.tensor([image_index[m] for m in members], device=device)
        decoded.append(
            decoder.decode(features, index, Prompt.joined([prompts[m] for m in members]))
        )
        order += members
    if not decoded:
        empty = features.embedding.new_zeros(0, decoder.side, decoder.side)
        return empty, features.embedding.new_zeros(0)
    back = torch.tensor(np.argsort(order), device=device)
    return torch.cat([logits for logits, _ in decoded])[back], torch.cat(
        [scores for _, scores in decoded]
    )[back]
