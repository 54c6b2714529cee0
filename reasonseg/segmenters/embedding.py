"""Embedding as mask (LISA): the language model says `<SEG>`, and the state of that token prompts
the decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from reasonseg.backbones.base import Backbone, GeneratedOutput
from reasonseg.checkpoints.parts import Parts
from reasonseg.errors import InputError
from reasonseg.nn.cache import ImageCache, Lock, hashed_once, in_turn
from reasonseg.segmenters import refinement
from reasonseg.segmenters.base import Capabilities, Segmenter
from reasonseg.segmenters.closer import clicked, looked_closer, piece_at, wants
from reasonseg.segmenters.postprocess import make_answer, masks_and_scores
from reasonseg.segmenters.prompting import (
    MaskRequest,
    decode_all,
    distinct,
    mask_requests,
    reference_prompts,
)
from reasonseg.segmenters.supervision import sample_losses
from reasonseg.structures.answer import Answer
from reasonseg.structures.languages import foreign
from reasonseg.structures.markers import FORCED, REFUSED, SEG
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

# bytes of keys and values kept for follow-up questions; LISA-7B's of one image take 150 MiB
PREFIXES = 2**30
MAX_BATCH = 32  # questions generated at once; more are taken in turns


@dataclass(frozen=True)
class Config:
    """No settings of its own: the parts have them all."""

    def build(self, parts: Parts) -> EmbeddingSegmenter:
        """The segmenter of these parts."""
        return EmbeddingSegmenter(parts)


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is generated; written into `Answer.meta`."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    force_seg: bool = False
    absent_threshold: float = 0.5


class EmbeddingSegmenter(Segmenter):
    """Words, references, points and boxes become prompts of one decoder; what is kept of images
    makes follow-ups fast.

    Threads may share it: calls of `batch` and `forced` run one after another.
    """

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.cache = ImageCache()  # of `batch` and `forced`
        self.prefixes = ImageCache(PREFIXES)
        self.turn = Lock()

    @property
    def capabilities(self) -> Capabilities:
        """What it can be asked; read off its parts."""
        return Capabilities(
            words=self.backbone is not None,
            references=self.references is not None,
            places="tokens" in self.decoder.takes,
            absent=self.backbone is not None and self.backbone.markers.rej is not None,
        )

    @in_turn
    @hashed_once()
    @torch.inference_mode()
    def batch(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        force_seg: bool = False,
        absent_threshold: float = 0.5,
        agreement: bool = False,
        refine: bool = False,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        """Answers several questions, the same as one by one.

        Args:
            queries: The questions, about any images.
            max_new_tokens: At most so many tokens are generated; None: the model's setting.
            temperature: 0 takes the likeliest token; above 0 samples.
            seed: Of the sampling.
            force_seg: Draws a mask in any case.
            absent_threshold: Answers `absent` where `<REJ>` has at least this share (0..1) of the
                probability of `<REJ>` and `<SEG>`.
            agreement: Also asks with every reference alone, and reports the IoU of that answer
                with the whole one.
            refine: Draws every mask again with the model's refiner.
            on_text: Is called with (number of the query, text so far), before masks are drawn.

        Returns:
            Answers in the order of the queries; masks bool `[n, h, w]` at image size, scores 0..1.

        Raises:
            InputError: This model has no part for a question, or an option is out of range.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens {max_new_tokens}: give 1 or more")
        self.eval()
        length = max_new_tokens or self.settings.max_new_tokens
        options = GenerationOptions(length, temperature, seed, force_seg, absent_threshold)
        answers: list[Answer] = []
        for start in range(0, len(queries), MAX_BATCH):
            part = list(queries[start : start + MAX_BATCH])
            answers += self._answered(part, options, _shifted(on_text, start))
        if agreement:
            refinement.add_agreement(lambda alone: self._answered(alone, options), queries, answers)
        if refine:
            refinement.refine(self, self.cache, queries, answers)
        return answers

    @in_turn
    @hashed_once()
    @torch.inference_mode()
    def forced(
        self, queries: Sequence[Query], answers: Sequence[str] | None = None
    ) -> list[Answer]:
        """Draws the masks of given answer texts, as LISA validates; nothing is generated.

        Questions about one image (the same array object) share its prefix and its embedding.

        Args:
            queries: The questions.
            answers: One text a query, with `<SEG>` where a mask is wanted; None: `<SEG>.` each.

        Returns:
            Answers with one mask for each `<SEG>`.

        Raises:
            InputError: The model reads no words.
        """
        self.eval()
        texts = list(answers) if answers is not None else [FORCED] * len(queries)
        drawn: list[Answer] = []
        for start in range(0, len(queries), MAX_BATCH):
            part = list(queries[start : start + MAX_BATCH])
            drawn += self._forced(part, texts[start : start + MAX_BATCH])
        return drawn

    def loss(
        self, samples: Sequence[Sample], counts: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of true answers; see `supervision.sample_losses`."""
        return sample_losses(self, samples, counts, self.feature_store)

    def forget(self) -> None:
        """Forgets what is kept of images."""
        self.cache.clear()
        self.prefixes.clear()

    def _answered(
        self,
        queries: list[Query],
        options: GenerationOptions,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        """Answers to at most `MAX_BATCH` queries."""
        began = time.perf_counter()
        for query in queries:
            self._check(query)
        images, image_index = distinct([q.image for q in queries])
        features = self.cache([self.decoder], images, self.decoder.encode, self.decoder.pixels.size)
        outputs = self._generated(queries, images, image_index, options, on_text)
        shown = reference_prompts(self, queries, self.cache)
        requests: list[MaskRequest] = []
        for i, (query, output) in enumerate(zip(queries, outputs, strict=True)):
            requests += mask_requests(self, i, query, output, shown.get(i, []))
        where = [image_index[r.query] for r in requests]
        logits, scores = decode_all(self.decoder, features, where, [r.prompt for r in requests])
        markers = self.backbone.markers if self.backbone is not None else None
        answers = []
        for i, query in enumerate(queries):
            mine = [m for m, r in enumerate(requests) if r.query == i]
            given = logits[mine], scores[mine], query.size, self.settings.score
            masks, quality = masks_and_scores(self.decoder.restore, *given)
            if wants(self, query):
                masks = looked_closer(self, query, logits[mine], self.cache)[None]
            elif clicked(self, query):
                masks = piece_at(masks[0], query.points[0])[None]
            quality = quality * np.array([requests[m].probability for m in mine], np.float32)
            meta = {"model": self.settings.about.get("name", ""), **asdict(options)}
            labels = [requests[m].label for m in mine]
            answer = make_answer(query, outputs[i], markers, masks, quality, labels, meta)
            answers.append(self._doubted(query, answer, options))
        seconds = round((time.perf_counter() - began) / len(queries), 4)
        for answer in answers:
            answer.meta["seconds"] = seconds
        return answers

    def _doubted(self, query: Query, answer: Answer, options: GenerationOptions) -> Answer:
        """The answer, or `absent` where its words have only masks that the model doubts.

        What is shown, pointed at or forced is never doubted.
        """
        told = query.references or query.points or query.boxes or not query.text.strip()
        if told or options.force_seg or not len(answer.masks) or not self.capabilities.absent:
            return answer
        if float(answer.scores.max()) >= self.settings.doubt:
            return answer
        meta = {**answer.meta, "doubted": answer.text}
        return replace(
            answer, text=REFUSED, masks=answer.masks[:0], scores=answer.scores[:0], labels=[],
            status="absent", meta=meta,
        )  # fmt: skip

    def _check(self, query: Query) -> None:
        """Raises `InputError` for a question that this model has no part for."""
        reads = self.backbone is not None and self.backbone.reads_references and query.text.strip()
        if query.references and self.references is None and not reads:
            raise InputError(
                "this model takes words, points and boxes; it was not trained on references"
            )
        if query.text.strip():
            if self.backbone is None:
                raise InputError(
                    "this model takes examples only and reads no words; leave the text out"
                )
            self.backbone.check(query)
            if self.settings.english_only and (other := foreign(query.text)):
                raise InputError(
                    f"this model was trained on English questions; {query.text[:60]!r} looks "
                    f"{other}: ask in English, or take another model"
                )
        if (
            query.points or query.boxes or query.previous is not None
        ) and "tokens" not in self.decoder.takes:
            raise InputError(
                "this model takes examples only; points, boxes and masks to correct need a SAM "
                "decoder"
            )

    def _forced(self, queries: list[Query], texts: list[str]) -> list[Answer]:
        backbone, prompter = self.language()
        answers = []
        for query, text in zip(queries, texts, strict=True):
            blank = np.zeros((text.count(SEG), *query.size), bool)
            answers.append(Answer(text, blank, np.ones(len(blank)), [""] * len(blank), "found"))
        images, image_index = distinct([q.image for q in queries])
        seen = None
        if backbone.encoders and not any(q.history for q in queries):
            seen = self.cache(backbone.encoders, images, backbone.encode, backbone.pixels.size)
        samples = [Sample(q, a) for q, a in zip(queries, answers, strict=True)]
        output = backbone.teach(samples, prompter.config.at, features=seen)
        index = torch.tensor([image_index[i] for i in output.sample_index], device=self.device)
        features = self.cache([self.decoder], images, self.decoder.encode, self.decoder.pixels.size)
        logits, scores = self.decoder.decode(features, index, prompter(output.states))
        drawn = []
        for i, query in enumerate(queries):
            mine = [m for m, owner in enumerate(output.sample_index) if owner == i]
            given = logits[mine], scores[mine], query.size, self.settings.score
            masks, quality = masks_and_scores(self.decoder.restore, *given)
            drawn.append(replace(answers[i], masks=masks, scores=quality))
        return drawn

    def _generated(
        self,
        queries: list[Query],
        images: list,
        image_index: list[int],
        options: GenerationOptions,
        on_text: Callable[[int, str], None] | None,
    ) -> list[GeneratedOutput | None]:
        """What is said to each query; None where it has no words."""
        asked = [i for i, q in enumerate(queries) if q.text.strip()]
        if not asked:
            return [None] * len(queries)
        backbone, prompter = self.language()
        mine, seen = [queries[i] for i in asked], sorted({image_index[i] for i in asked})
        features, again = None, len(seen) < len(asked)
        if encoders := backbone.encoders:
            pictures = [images[j] for j in seen]
            features, cached = self.cache.fetch(
                encoders, pictures, backbone.encode, backbone.pixels.size
            )
            features = features[[seen.index(image_index[i]) for i in asked]]
            again |= any(cached)
        regions = None
        if backbone.reads_references and (encoder := backbone.patch_encoder):
            side = backbone.pixels.size
            regions = backbone.regions(
                mine, partial(self.cache, [encoder.module], encode=encoder.encode, side=side)
            )
        given = self._prefixes(backbone, [images[image_index[i]] for i in asked], again)
        if on_text is not None:
            given["on_text"] = lambda k, text: on_text(asked[k], text)
        outputs = backbone.generate(
            mine, features, regions, state=prompter.config.at, **asdict(options), **given
        )
        found: list[GeneratedOutput | None] = [None] * len(queries)
        for i, output in zip(asked, outputs, strict=True):
            found[i] = output
        return found

    def _prefixes(self, backbone: Backbone, images: list, again: bool) -> dict[str, Any]:
        """What `generate` is given of images that are asked about again; of one that is new,
        what to keep.
        """
        if not backbone.keeps_prefixes or not (again or len(images) == 1):
            return {}
        if not backbone.even_prefixes and len({id(image) for image in images}) > 1:
            return {}
        modules = [*backbone.encoders, backbone.model.get_input_embeddings(), backbone.layers]
        if not again:
            return {
                "on_cache": lambda cache: self.prefixes.put(
                    modules, images[0], backbone.prefix_in(cache)
                )
            }

        def read(new: list) -> torch.Tensor:
            return backbone.prefix(
                self.cache(backbone.encoders, new, backbone.encode, backbone.pixels.size)
            )

        return {"prefixes": self.prefixes(modules, images, read, backbone.pixels.size)}


def _shifted(
    on_text: Callable[[int, str], None] | None, start: int
) -> Callable[[int, str], None] | None:
    """`on_text` for a part of the queries that begins at `start`."""
    return None if on_text is None else lambda i, text: on_text(start + i, text)
