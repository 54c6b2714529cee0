"""Where the rooms meet: a query becomes an answer, samples become losses."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reasonseg.segmenters import refinement as second_looks
from reasonseg.nn import losses
from reasonseg.segmenters.prompting import Asked, Shown, by_label, distinct, finished, fitted, labels_of
from reasonseg.nn.cache import ImageCache, settled
from reasonseg.config.schema import Kind
from reasonseg.errors import InputError
from reasonseg.nn.feature_store import FrozenCache, once
from reasonseg.datasets.phrasing import FORCED
from reasonseg.nn.prompt import Prompt
from reasonseg.config.model import ModelSettings
from reasonseg.backbones.base import SEG, Spoken, Taught
from reasonseg.structures.query import Answer, Query, Sample

PREFIXES = 2**30  # bytes of keys and values kept for follow-up questions; LISA-7B's of one image take 150 MiB
MAX_BATCH = 32  # questions generated at once; more are taken in turns


class Segmenter(nn.Module):
    """A backbone that speaks, prompters that point, a decoder that draws.

    `segmenter(query)` answers one question, `segmenter.batch(queries)` many, `segmenter.loss(samples)` teaches. `backbone`
    and `prompter` are None in a model that takes examples only, `references` in one that takes words only; `refiner` is a second
    decoder that sharpens what a decoder without edges of its own (SegGPT) paints.
    """

    def __init__(
        self,
        settings: ModelSettings,
        backbone: Any,
        prompter: Any,
        decoder: Any,
        references: Any = None,
        refiner: Any = None,
    ):
        super().__init__()
        self.settings, self.backbone, self.prompter, self.decoder = settings, backbone, prompter, decoder
        self.references, self.refiner = references, refiner
        self.cache = ImageCache()  # of `batch` and `forced`
        self.prefixes = ImageCache(PREFIXES)
        self.frozen: FrozenCache | None = None  # of `loss`, for encoders that are not trained
        self.origin: dict[str, Any] | None = None  # the keywords of `from_pretrained`, where it came from there
        for name, part in (("prompter", prompter), ("references", references)):
            if part is not None and part.makes not in decoder.takes:
                raise InputError(f"{name} makes {part.makes}, the decoder takes {', '.join(decoder.takes)}")
            if part is not None and part.makes == "tokens" and part.config.width_out != decoder.width:
                raise InputError(
                    f"{name} makes tokens of width {part.config.width_out}, the decoder takes {decoder.width}"
                )
        if prompter is not None and prompter.config.width_in != backbone.width:
            raise InputError(
                f"the prompter reads states of width {prompter.config.width_in}, the backbone has {backbone.width}"
            )
        if references is not None:
            references.meet(backbone, decoder)

    @classmethod
    def build(cls, settings: ModelSettings) -> Segmenter:
        """A model with fresh weights."""
        decoder = settings.decoder.config.build()
        backbone = settings.backbone.config.build() if settings.backbone else None
        parts = {name: fitted(getattr(settings, name), backbone, decoder) for name in ("prompter", "references")}
        built = {name: kind.config.build() if kind else None for name, kind in parts.items()}
        return cls(replace(settings, **parts), backbone, built["prompter"], decoder, built["references"])

    def with_references(self, kind: Kind) -> Segmenter:
        """The same model, its parts shared, with a fresh prompter for examples."""
        kind = fitted(kind, self.backbone, self.decoder)
        settings = replace(self.settings, references=kind)
        return Segmenter(settings, self.backbone, self.prompter, self.decoder, kind.config.build())

    def reading_examples(self) -> Segmenter:
        """The same model, whose backbone from now on reads references beside words; raises `InputError` where it cannot."""
        if self.settings.backbone is None or not hasattr(self.settings.backbone.config, "examples"):
            raise InputError("examples: this model's backbone does not read references; llava does")
        kind = Kind(self.settings.backbone.kind, replace(self.settings.backbone.config, examples=True))
        self.settings, self.backbone.config, self.origin = replace(self.settings, backbone=kind), kind.config, None
        return self

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None, **options) -> Segmenter:
        """A model from a folder, a hub id, or (None) the embedded one; see `reasonseg.checkpoints.folder.load`."""
        from reasonseg.checkpoints.folder import load

        return load(cls, source, **options)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a folder that `from_pretrained` reads; see `reasonseg.checkpoints.folder.save`."""
        from reasonseg.checkpoints.folder import save

        save(self, folder, dtype)

    def push_to_hub(self, repo_id: str, **options) -> None:
        """Uploads the folder to the Hugging Face hub."""
        from reasonseg.checkpoints.folder import push

        push(self, repo_id, **options)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.decoder.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Name and a hash of the settings and of the first values of every weight: other weights, another fingerprint."""
        digest = hashlib.sha256(repr(self.settings).encode())
        for name, value in self.named_parameters():
            digest.update(name.encode() + value.detach().flatten()[:64].float().cpu().numpy().tobytes())
        return f"{self.settings.about.get('name', 'model')}-{digest.hexdigest()[:12]}"

    def forward(self, query: Query, **options) -> Answer:
        """One answer; the options are those of `batch`."""
        return self.batch([query], **options)[0]

    @settled()
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
        heard: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        """Answers in the order of the queries, the same as one by one.

        `temperature` 0 takes the likeliest word; `force_seg` gets a mask in any case; a thing is `absent` where `<REJ>`
        has at least `absent_threshold` of the probability of `<REJ>` and `<SEG>`. `agreement` also asks with every reference
        alone and says the IoU of that answer with the whole one; `refine` hands masks on to the model's refiner.
        `heard(i, text)` is told what was said to query i so far, before its masks are drawn.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens {max_new_tokens}: give 1 or more")
        self.eval()
        how = {
            "max_new_tokens": max_new_tokens or self.settings.max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "force_seg": force_seg,
            "absent_threshold": absent_threshold,
        }
        answers: list[Answer] = []
        for start in range(0, len(queries), MAX_BATCH):
            told = heard and (lambda i, text, first=start: heard(first + i, text))
            answers += self.answered(list(queries[start : start + MAX_BATCH]), how, told)
        if agreement:
            second_looks.agree(self, queries, answers, how)
        if refine:
            second_looks.refine(self, queries, answers)
        return answers

    def answered(self, queries: list[Query], how: dict, heard: Callable | None = None) -> list[Answer]:
        """Answers to at most `MAX_BATCH` queries, with every option of `batch` in `how`."""
        began = time.perf_counter()
        self._check(queries)
        images, of_image = distinct([q.image for q in queries])
        features = self.cache([self.decoder], images, self.decoder.encode, self.decoder.pixels.size)
        spoken = self._speak(queries, images, of_image, {**how, "heard": heard})
        shown = self._show(queries, self.cache)
        asked: list[Asked] = []
        for i, (query, said) in enumerate(zip(queries, spoken, strict=True)):
            asked += self._asked(i, query, said, shown.get(i, []))
        logits, scores = self.decode_all(features, [of_image[a.query] for a in asked], [a.prompt for a in asked])
        answers = []
        for i, query in enumerate(queries):
            mine = [m for m, a in enumerate(asked) if a.query == i]
            masks, quality = finished(self.decoder.restore, logits[mine], scores[mine], query.size, self.settings.score)
            quality = quality * np.array([asked[m].share for m in mine], np.float32)
            meta = {"model": self.settings.about.get("name", ""), **how}
            answers.append(self._answer(query, spoken[i], masks, quality, [asked[m].label for m in mine], meta))
        seconds = round((time.perf_counter() - began) / len(queries), 4)
        for answer in answers:
            answer.meta["seconds"] = seconds
        return answers

    def forget(self) -> None:
        """Forgets what is kept of images."""
        self.cache.clear()
        self.prefixes.clear()

    def _check(self, queries: list[Query]) -> None:
        """Raises `InputError` for a question that this model has no part for."""
        for query in queries:
            if query.references and self.references is None:
                raise InputError("this model takes words, points and boxes; it was not taught references")
            if query.text.strip() and self.backbone is None:
                raise InputError("this model takes examples only and reads no words; leave the text out")
            if query.text.strip():
                self.backbone.check(query)
            if (query.points or query.boxes or query.previous is not None) and "tokens" not in self.decoder.takes:
                raise InputError(
                    "this model takes examples only; points, boxes and masks to correct need a SAM decoder"
                )

    @settled()
    @torch.inference_mode()
    def forced(self, queries: Sequence[Query], answers: Sequence[str] | None = None) -> list[Answer]:
        """Masks of answers put into the model's mouth, as LISA validates: nothing is generated, so refusing is not possible.

        `answers` are the words, one text a query; `<SEG>.` where they are absent. Questions on one image (the same object)
        share its prefix and its embedding.
        """
        self.eval()
        words = list(answers) if answers is not None else [FORCED] * len(queries)
        drawn: list[Answer] = []
        for start in range(0, len(queries), MAX_BATCH):
            part = list(queries[start : start + MAX_BATCH])
            said = []
            for query, text in zip(part, words[start : start + MAX_BATCH], strict=True):
                blank = np.zeros((text.count(SEG), *query.size), bool)
                said.append(Answer(text, blank, np.ones(len(blank)), [""] * len(blank), "found"))
            images, of_image = distinct([q.image for q in part])
            seen = None
            if self.backbone.encoders and not any(q.history for q in part):
                seen = self.cache(self.backbone.encoders, images, self.backbone.encode, self.backbone.pixels.size)
            samples = [Sample(q, a) for q, a in zip(part, said, strict=True)]
            taught = self.backbone.teach(samples, self.prompter.config.at, features=seen)
            index = torch.tensor([of_image[i] for i in taught.of], device=self.device)
            features = self.cache([self.decoder], images, self.decoder.encode, self.decoder.pixels.size)
            logits, scores = self.decoder.decode(features, index, self.prompter(taught.states))
            for i, query in enumerate(part):
                mine = [m for m, owner in enumerate(taught.of) if owner == i]
                given = logits[mine], scores[mine], query.size, self.settings.score
                masks, quality = finished(self.decoder.restore, *given)
                drawn.append(replace(said[i], masks=masks, scores=quality))
        return drawn

    def _speak(self, queries: list[Query], images: list, of_image: list[int], how: dict) -> list[Spoken | None]:
        asked = [i for i, q in enumerate(queries) if q.text.strip()]
        if not asked:
            return [None] * len(queries)
        seen = sorted({of_image[i] for i in asked})
        features, hits = None, self.cache.hits
        if encoders := self.backbone.encoders:
            features = self.cache(encoders, [images[j] for j in seen], self.backbone.encode, self.backbone.pixels.size)
            features = features[[seen.index(of_image[i]) for i in asked]]
        again = self.cache.hits > hits or len(seen) < len(asked)
        how |= self._prefixes([images[of_image[i]] for i in asked], again)
        mine, regions = [queries[i] for i in asked], None
        if hasattr(self.backbone, "regions"):
            tower, look = [self.backbone.tower], self.backbone.look
            looked = partial(self.cache, tower, encode=look, side=self.backbone.pixels.size)
            regions = self.backbone.regions(mine, looked)
        if heard := how.pop("heard", None):
            how["heard"] = lambda k, text: heard(asked[k], text)
        said = self.backbone.speak(mine, features, regions, at=self.prompter.config.at == "at", **how)
        return [said[asked.index(i)] if i in asked else None for i in range(len(queries))]

    def _prefixes(self, images: list, again: bool) -> dict[str, Any]:
        """What `speak` is told of images that are asked about again; of one that is new it tells what to keep."""
        backbone = self.backbone
        if not hasattr(backbone, "prefix") or not (again or len(images) == 1):
            return {}
        modules = [*backbone.encoders, backbone.model.get_input_embeddings(), backbone.layers]
        if not again:
            return {"cached": lambda cache: self.prefixes.put(modules, images[0], backbone.prefix_in(cache))}

        def read(new: list) -> torch.Tensor:
            return backbone.prefix(self.cache(backbone.encoders, new, backbone.encode, backbone.pixels.size))

        return {"prefixes": self.prefixes(modules, images, read, backbone.pixels.size)}

    def _show(self, queries: list[Query], cache: Any) -> dict[int, list[Shown]]:
        """What references say, for the queries that have some: one prompt a label, or one in all beside words."""
        having = [i for i, q in enumerate(queries) if q.references]
        if not having:
            return {}
        groups, owners = [], []
        for i in having:
            mine = [list(queries[i].references)] if queries[i].text.strip() else by_label(queries[i].references)
            groups += [(queries[i].image, group) for group in mine]
            owners += [i] * len(mine)
        prompts = self.references.prompts(groups, cache, owners)
        shown: dict[int, list[Shown]] = {i: [] for i in having}
        for i, (_, group), prompt in zip(owners, groups, prompts, strict=True):
            shown[i].append(Shown(prompt, group[0].label or ""))
        return shown

    def _asked(self, i: int, query: Query, said: Spoken | None, shown: list[Shown]) -> list[Asked]:
        """One prompt a mask, with the probability of its `<SEG>`. References stand beside every one, places beside the first.

        Without words the references are the prompts, and without those the points and boxes.
        """
        places = None
        if query.points or query.boxes:
            places = self.decoder.places(list(query.points), list(query.boxes), query.size)
        if said is not None:
            where = [t for t, token in enumerate(said.ids) if token == self.backbone.markers.seg]
            states = said.states[[t + (self.prompter.config.at == "at") for t in where]]
            tokens = self.prompter(states).tokens
            asked = [Asked(i, Prompt(tokens[m : m + 1]), said.probabilities[t]) for m, t in enumerate(where)]
            asked = [replace(a, prompt=a.prompt.beside(s.prompt)) for a in asked for s in shown[:1]] or asked
        elif shown:
            asked = [Asked(i, s.prompt, 1.0, s.label) for s in shown]
        else:
            asked, places = [Asked(i, places, 1.0)], None
        if asked and places is not None:
            asked[0] = replace(asked[0], prompt=asked[0].prompt.beside(places))
        if asked and query.previous is not None:
            asked[0] = replace(asked[0], prompt=Prompt(asked[0].prompt.tokens, self.decoder.dense(query.previous)))
        return asked

    def decode_all(self, features, of: list[int], prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[n, side, side]` and scores `[n]` of prompts on images `of`; prompts of a kind go through together."""
        groups: dict[object, list[int]] = {}
        for m, prompt in enumerate(prompts):
            groups.setdefault(prompt.kind, []).append(m)
        parts, order = [], []
        for members in groups.values():
            index = torch.tensor([of[m] for m in members], device=self.device)
            parts.append(self.decoder.decode(features, index, Prompt.joined([prompts[m] for m in members])))
            order += members
        if not parts:
            empty = features.embedding.new_zeros(0, self.decoder.side, self.decoder.side)
            return empty, features.embedding.new_zeros(0)
        back = torch.tensor(np.argsort(order), device=self.device)
        return torch.cat([p[0] for p in parts])[back], torch.cat([p[1] for p in parts])[back]

    def _answer(self, query: Query, said: Spoken | None, masks, scores, labels: list[str], meta: dict) -> Answer:
        whole = sum(r.weight for r in query.references)
        used = [
            {"name": r.name, "label": r.label or "", "weight": round(r.weight / whole, 4)} for r in query.references
        ]
        common: dict[str, Any] = {"references": used, "meta": meta, "image": query.image}
        if said is None:
            return Answer("", masks, scores, labels, "found", **common)
        markers = self.backbone.markers
        refused = markers.rej is not None and markers.rej in said.ids
        status = "found" if len(masks) else "absent" if refused else "no_seg"
        labels = labels_of(said.text, markers.seg_text, markers.rej_text, query.text)
        return Answer(said.text, masks, scores, labels, status, **common)

    def loss(self, samples: Sequence[Sample], counts: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
        """Losses of true answers: `loss` (weighted sum), its parts, and the share of words that were right.

        Text is averaged over answer tokens, masks over all masks of the batch (LISA's rule), at the images' own size. Where the
        samples are a part of a step, `counts` are the `tokens` and `masks` of the whole: the parts' losses add up to its loss.
        """
        samples = list(samples)
        spoken = [i for i, s in enumerate(samples) if s.query.text.strip()]
        taught = self._taught([samples[i] for i in spoken]) if spoken else None
        truths = [torch.from_numpy(s.truth.masks).to(self.device) for s in samples]
        prompts, of = self.prompts_of(samples, taught, ImageCache(0))
        if [of.count(i) for i in range(len(samples))] != [len(t) for t in truths]:
            raise InputError(f"answers ask for {len(of)} masks in all, their truths hold {sum(map(len, truths))}")
        images, of_image = distinct([s.query.image for s in samples])
        encoded = once(self.frozen, self.decoder, images) or self.decoder.encode(images)
        logits, predicted = self.decode_all(encoded, [of_image[i] for i in of], prompts)
        weights = self.settings.loss
        tokens, masks = (counts["tokens"], counts["masks"]) if counts else (taught.tokens if taught else 0, len(of))
        silent = logits.sum() * 0.0  # where nothing is spoken; named all the same, so that processes log alike
        parts = (
            {"text": taught.cross_entropy / max(tokens, 1) if taught else silent} if self.backbone is not None else {}
        )
        drawn = self.mask_losses(logits, predicted, truths, of)
        parts |= {name: value * (len(of) / max(masks, 1)) for name, value in drawn.items()}
        total = sum(getattr(weights, name) * value for name, value in parts.items())
        accuracy = (
            {"text_accuracy": taught.correct / max(tokens, 1) if taught else silent} if parts.keys() & {"text"} else {}
        )
        return {"loss": total, **parts, **accuracy}

    def _taught(self, samples: list[Sample]) -> Taught:
        """True answers through the backbone."""
        images, _ = distinct([s.query.image for s in samples])
        seen = None if any(s.query.history for s in samples) else once(self.frozen, self.backbone, images)
        given = {} if seen is None else {"features": seen}
        return self.backbone.teach(samples, self.prompter.config.at, **given)

    def prompts_of(self, samples: list[Sample], taught: Taught | None, cache: Any) -> tuple[list[Prompt], list[int]]:
        """One prompt a true mask, and the sample it is of, sample by sample.

        `taught` is what the backbone made of the samples with words: a token each `<SEG>`, the tokens of references beside it.
        References without words are prompts of their own, one a label.
        """
        spoken = [i for i, s in enumerate(samples) if s.query.text.strip()]
        shown = self._show([s.query for s in samples], cache)
        prompts: list[tuple[int, Prompt]] = [(i, s.prompt) for i in shown if i not in spoken for s in shown[i]]
        if taught is not None:
            tokens = self.prompter(taught.states).tokens
            for m, k in enumerate(taught.of):
                prompt = Prompt(tokens[m : m + 1])
                for s in shown.get(spoken[k], [])[:1]:
                    prompt = prompt.beside(s.prompt)
                prompts.append((spoken[k], prompt))
        prompts.sort(key=lambda pair: pair[0])  # stable: the order of an answer's text stays
        return [p for _, p in prompts], [i for i, _ in prompts]

    def mask_losses(self, logits, predicted, truths: list[torch.Tensor], of: list[int]) -> dict[str, torch.Tensor]:
        """bce, dice and iou of logits `[m, 4g, 4g]`, averaged over masks; 0 where there are none.

        `truths` holds the masks `[n, h, w]` of each sample, those of one size go through together; logit m is of sample `of[m]`.
        """
        return losses.of_masks(self.decoder.restore, logits, predicted, truths, of)
