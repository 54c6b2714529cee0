"""Losses of true answers: the same path as answering, with teacher forcing in place of
generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from reasonseg.backbones.base import TeacherForcedOutput
from reasonseg.checkpoints.parts import Parts
from reasonseg.errors import InputError
from reasonseg.nn.cache import ImageCache
from reasonseg.nn.feature_store import FeatureStore, stored
from reasonseg.nn.losses import mask_losses
from reasonseg.nn.prompt import Prompt
from reasonseg.segmenters.prompting import decode_all, distinct, reference_prompts
from reasonseg.structures.sample import Sample


def sample_losses(
    parts: Parts,
    samples: Sequence[Sample],
    counts: Mapping[str, float] | None = None,
    store: FeatureStore | None = None,
) -> dict[str, torch.Tensor]:
    """Losses of true answers at the size of the images (LISA's losses, model/LISA.py).

    Text is averaged over answer tokens, masks over all masks of the batch. Pixels that a sample
    ignores have no loss.

    Args:
        parts: The model.
        samples: Questions with their true answers.
        counts: `tokens` and `masks` of the whole step, where the samples are a part of it: the
            parts' losses add up to its loss.
        store: Features of frozen encoders, kept on disk.

    Returns:
        `loss` (weighted sum), its parts, and the share of answer tokens that were predicted right
        (`text_accuracy`, 0..1).

    Raises:
        InputError: Answers and masks do not go together.
    """
    samples = list(samples)
    worded = [s for s in samples if s.query.text.strip()]
    output = teacher_forced(parts, worded, store) if worded else None
    truths = [torch.from_numpy(s.truth.masks).to(parts.device) for s in samples]
    prompts, sample_index = target_prompts(parts, samples, output, ImageCache(0))
    if [sample_index.count(i) for i in range(len(samples))] != [len(t) for t in truths]:
        wanted = len(sample_index)
        raise InputError(
            f"answers ask for {wanted} masks in all, their truths hold {sum(map(len, truths))}"
        )
    images, image_index = distinct([s.query.image for s in samples])
    features = stored(store, parts.decoder, images) or parts.decoder.encode(images)
    logits, predicted = decode_all(
        parts.decoder, features, [image_index[i] for i in sample_index], prompts
    )
    void = [
        None if s.ignored is None else torch.from_numpy(s.ignored).to(parts.device) for s in samples
    ]
    drawn = mask_losses(parts.decoder.restore, logits, predicted, truths, sample_index, void)
    tokens, masks = (output.tokens if output else 0), len(sample_index)
    if counts:
        tokens, masks = counts["tokens"], counts["masks"]
    # where no sample has words; present all the same, so that all processes log the same
    silent = logits.sum() * 0.0
    losses: dict[str, torch.Tensor] = {}
    accuracy: dict[str, torch.Tensor] = {}
    if parts.backbone is not None:
        losses["text"] = output.cross_entropy / max(tokens, 1) if output else silent
        accuracy["text_accuracy"] = output.correct / max(tokens, 1) if output else silent
    losses |= {name: value * (len(sample_index) / max(masks, 1)) for name, value in drawn.items()}
    total = torch.zeros((), device=logits.device)
    for name, value in losses.items():
        total = total + getattr(parts.settings.loss, name) * value
    return {"loss": total, **losses, **accuracy}


def teacher_forced(
    parts: Parts, samples: list[Sample], store: FeatureStore | None = None
) -> TeacherForcedOutput:
    """True answers through the backbone; all samples have words."""
    backbone, prompter = parts.language()
    images, _ = distinct([s.query.image for s in samples])
    seen = None if any(s.query.history for s in samples) else stored(store, backbone, images)
    given = {} if seen is None else {"features": seen}
    return backbone.teach(samples, prompter.config.at, **given)


def target_prompts(
    parts: Parts, samples: Sequence[Sample], output: TeacherForcedOutput | None, cache: Callable
) -> tuple[list[Prompt], list[int]]:
    """One prompt (n = 1) a true mask, and the index of its sample, sample by sample.

    `output` is of the samples with words: a token for each `<SEG>`, the tokens of references beside
    it. References without words are prompts of their own, one a label.
    """
    worded = [i for i, s in enumerate(samples) if s.query.text.strip()]
    shown = reference_prompts(parts, [s.query for s in samples], cache)
    prompts = [(i, s.prompt) for i in shown if i not in worded for s in shown[i]]
    if output is not None:
        _, prompter = parts.language()
        tokens = prompter(output.states).tokens
        for m, k in enumerate(output.sample_index):
            prompt = Prompt(tokens[m : m + 1])
            for s in shown.get(worded[k], [])[:1]:
                prompt = prompt.beside(s.prompt)
            prompts.append((worded[k], prompt))
    prompts.sort(key=lambda pair: pair[0])  # stable: the order of an answer's text stays
    return [p for _, p in prompts], [i for i, _ in prompts]
