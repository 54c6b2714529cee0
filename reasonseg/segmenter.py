"""Where the rooms meet: a query becomes an answer, samples become losses."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reasonseg import losses
from reasonseg.cache import ImageCache
from reasonseg.config import Kind
from reasonseg.errors import InputError
from reasonseg.phrasing import FORCED
from reasonseg.prompt import Prompt
from reasonseg.settings import ModelSettings
from reasonseg.speaking import SEG, Spoken, pieces
from reasonseg.vocabulary import Answer, Query, Sample

MAX_BATCH = 32  # questions generated at once; more are taken in turns


class Segmenter(nn.Module):
    """A backbone that speaks, a prompter that points, a decoder that draws.

    `segmenter(query)` answers one question, `segmenter.batch(queries)` many, `segmenter.loss(samples)` teaches.
    """

    def __init__(self, settings: ModelSettings, backbone: nn.Module, prompter: nn.Module, decoder: nn.Module):
        super().__init__()
        self.settings, self.backbone, self.prompter, self.decoder = settings, backbone, prompter, decoder
        self.cache = ImageCache()  # of `batch` and `forced`, not of `loss`
        if prompter.config.width_out != decoder.width:
            raise InputError(
                f"the prompter makes tokens of width {prompter.config.width_out}, the decoder takes {decoder.width}"
            )
        if prompter.config.width_in != backbone.width:
            raise InputError(
                f"the prompter reads states of width {prompter.config.width_in}, the backbone has {backbone.width}"
            )

    @classmethod
    def build(cls, settings: ModelSettings) -> Segmenter:
        """A model with fresh weights."""
        backbone, decoder = settings.backbone.config.build(), settings.decoder.config.build()
        widths = {"width_in": backbone.width, "width_out": decoder.width}
        config = replace(
            settings.prompter.config, **{k: v for k, v in widths.items() if not getattr(settings.prompter.config, k)}
        )
        settings = replace(settings, prompter=Kind(settings.prompter.kind, config))
        return cls(settings, backbone, config.build(), decoder)

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None, **options) -> Segmenter:
        """A model from a folder, a hub id, or (None) the embedded one; see `reasonseg.checkpoint.load`."""
        from reasonseg.checkpoint import load

        return load(cls, source, **options)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a folder that `from_pretrained` reads; see `reasonseg.checkpoint.save`."""
        from reasonseg.checkpoint import save

        save(self, folder, dtype)

    def push_to_hub(self, repo_id: str, **options) -> None:
        """Uploads the folder to the Hugging Face hub."""
        from reasonseg.checkpoint import push

        push(self, repo_id, **options)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.backbone.device

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
    ) -> list[Answer]:
        """Answers in the order of the queries, the same as one by one.

        `temperature` 0 takes the likeliest word; `force_seg` gets a mask in any case; a thing is `absent` where `<REJ>`
        has at least `absent_threshold` of the probability of `<REJ>` and `<SEG>`.
        """
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
            answers += self._batch(list(queries[start : start + MAX_BATCH]), how)
        return answers

    def _batch(self, queries: list[Query], how: dict) -> list[Answer]:
        began = time.perf_counter()
        for query in queries:
            if query.references:
                raise InputError("this model takes words, points and boxes; it was not taught references")
        images, of_image = distinct([q.image for q in queries])
        features = self.cache([self.decoder], images, self.decoder.encode, self.decoder.pixels.size)
        spoken = self._speak(queries, images, of_image, how)
        prompts, owners, shares = [], [], []
        for i, (query, said) in enumerate(zip(queries, spoken, strict=True)):
            prompt, share = self._prompt(query, said)
            prompts += prompt
            shares += share
            owners += [i] * len(prompt)
        logits, scores = self._decode(features, [of_image[i] for i in owners], prompts)
        answers = []
        for i, query in enumerate(queries):
            mine = [m for m, owner in enumerate(owners) if owner == i]
            full = self.decoder.restore(logits[mine], query.size)
            quality = self._quality(full, scores[mine]) * torch.tensor([shares[m] for m in mine], device=full.device)
            meta = {"model": self.settings.about.get("name", ""), **how}
            answers.append(self._answer(query, spoken[i], (full > 0).cpu().numpy(), quality.cpu().numpy(), meta))
        seconds = round((time.perf_counter() - began) / len(queries), 4)
        for answer in answers:
            answer.meta["seconds"] = seconds
        return answers

    @torch.inference_mode()
    def forced(self, queries: Sequence[Query], answer: str = FORCED) -> list[Answer]:
        """Masks of an answer put into the model's mouth, as LISA validates: nothing is generated, so refusing is not possible.

        Questions on one image (the same object) share its prefix and its embedding.
        """
        self.eval()
        answers: list[Answer] = []
        for start in range(0, len(queries), MAX_BATCH):
            part = list(queries[start : start + MAX_BATCH])
            blank = [np.zeros((answer.count(SEG), *q.size), bool) for q in part]
            said = [Answer(answer, b, np.ones(len(b)), [""] * len(b), "found") for b in blank]
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
                full = self.decoder.restore(logits[mine], query.size)
                quality = self._quality(full, scores[mine]).float().cpu().numpy()
                answers.append(replace(said[i], masks=(full > 0).cpu().numpy(), scores=quality))
        return answers

    def _speak(self, queries: list[Query], images: list, of_image: list[int], how: dict) -> list[Spoken | None]:
        asked = [i for i, q in enumerate(queries) if q.text.strip()]
        if not asked:
            return [None] * len(queries)
        seen = sorted({of_image[i] for i in asked})
        features = None
        if encoders := self.backbone.encoders:
            features = self.cache(encoders, [images[j] for j in seen], self.backbone.encode, self.backbone.pixels.size)
            features = features[[seen.index(of_image[i]) for i in asked]]
        said = self.backbone.speak([queries[i] for i in asked], features, at=self.prompter.config.at == "at", **how)
        return [said[asked.index(i)] if i in asked else None for i in range(len(queries))]

    def _prompt(self, query: Query, said: Spoken | None) -> tuple[list[Prompt], list[float]]:
        """One prompt a mask with the probability of its `<SEG>`. Points and boxes join the first; without words they are it."""
        places = None
        if query.points or query.boxes:
            places = self.decoder.places(list(query.points), list(query.boxes), query.size)
        if said is None:
            prompts, shares = [places], [1.0]
        else:
            where = [t for t, token in enumerate(said.ids) if token == self.backbone.markers.seg]
            states = said.states[[t + (self.prompter.config.at == "at") for t in where]]
            tokens = self.prompter(states).tokens
            prompts, shares = (
                [Prompt(tokens[m : m + 1]) for m in range(len(where))],
                [said.probabilities[t] for t in where],
            )
            if places is not None and prompts:
                prompts[0] = prompts[0].beside(places)
        if query.previous is not None and prompts:
            prompts[0] = Prompt(prompts[0].tokens, self.decoder.dense(query.previous))
        return prompts, shares

    def _decode(self, features, of: list[int], prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[n, 4g, 4g]` and scores `[n]` of prompts on images `of`; prompts of a kind go through together."""
        groups: dict[tuple, list[int]] = {}
        for m, prompt in enumerate(prompts):
            groups.setdefault((prompt.tokens.shape[1], prompt.dense is None), []).append(m)
        parts, order = [], []
        for (_, plain), members in groups.items():
            tokens = torch.cat([prompts[m].tokens for m in members])
            dense = None if plain else torch.cat([prompts[m].dense for m in members])
            index = torch.tensor([of[m] for m in members], device=self.device)
            parts.append(self.decoder.decode(features, index, Prompt(tokens, dense)))
            order += members
        if not parts:
            return features.embedding.new_zeros(0, self.decoder.side, self.decoder.side), features.embedding.new_zeros(
                0
            )
        back = torch.tensor(np.argsort(order), device=self.device)
        return torch.cat([p[0] for p in parts])[back], torch.cat([p[1] for p in parts])[back]

    def _quality(self, logits: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        if self.settings.score == "predicted":
            return predicted.float().clamp(0, 1)
        marked, shares = (logits > 0).flatten(1), logits.sigmoid().flatten(1)
        return (shares * marked).sum(1) / marked.sum(1).clamp(min=1)

    def _answer(self, query: Query, said: Spoken | None, masks: np.ndarray, scores: np.ndarray, meta: dict) -> Answer:
        if said is None:
            return Answer("", masks, scores, [""] * len(masks), "found", meta=meta, image=query.image)
        markers = self.backbone.markers
        refused = markers.rej is not None and markers.rej in said.ids
        status = "found" if len(masks) else "absent" if refused else "no_seg"
        labels = labels_of(said.text, markers.seg_text, markers.rej_text, query.text)
        return Answer(said.text, masks, scores, labels, status, meta=meta, image=query.image)

    def loss(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Losses of true answers: `loss` (weighted sum), its parts, and the counts they were averaged over.

        Text is averaged over answer tokens, masks over all masks of the batch (LISA's rule), at the images' own size.
        """
        samples = list(samples)
        taught = self.backbone.teach(samples, self.prompter.config.at)
        truths = [torch.from_numpy(s.truth.masks).to(self.device) for s in samples]
        wanted = [len(t) for t in truths]
        if [taught.of.count(i) for i in range(len(samples))] != wanted:
            raise InputError(f"answers ask for {len(taught.of)} masks in all, their truths hold {sum(wanted)}")
        images, of_image = distinct([s.query.image for s in samples])
        features = self.decoder.encode(images)
        index = torch.tensor([of_image[i] for i in taught.of], dtype=torch.long, device=self.device)
        logits, predicted = self.decoder.decode(features, index, self.prompter(taught.states))
        weights = self.settings.loss
        parts = {"text": taught.cross_entropy / max(taught.tokens, 1)}
        parts |= self.mask_losses(logits, predicted, truths, taught.of)
        total = sum(getattr(weights, name) * value for name, value in parts.items())
        accuracy = taught.correct / max(taught.tokens, 1)
        return {"loss": total, **parts, "text_accuracy": accuracy}

    def mask_losses(self, logits, predicted, truths: list[torch.Tensor], of: list[int]) -> dict[str, torch.Tensor]:
        """bce, dice and iou of logits `[m, 4g, 4g]`, averaged over masks; 0 where there are none.

        `truths` holds the masks `[n, h, w]` of each sample, `of[m]` the sample of each logit, in the order of the text.
        Samples of one size go through together.
        """
        by_size: dict[tuple[int, int], list[int]] = {}
        for m, owner in enumerate(of):
            by_size.setdefault(tuple(truths[owner].shape[-2:]), []).append(m)
        sums = {name: logits.sum() * 0.0 for name in ("bce", "dice", "iou")}
        for size, mine in by_size.items():
            full = self.decoder.restore(logits[mine], size)
            true = torch.cat([truths[i] for i in dict.fromkeys(of[m] for m in mine)])
            sums["bce"] = sums["bce"] + losses.bce(full, true).sum()
            sums["dice"] = sums["dice"] + losses.dice(full, true).sum()
            sums["iou"] = sums["iou"] + losses.iou_error(predicted[mine], full, true).sum()
        return {name: value / max(len(of), 1) for name, value in sums.items()}


def labels_of(text: str, seg: str, rej: str, question: str) -> list[str]:
    """What each mask is called: the words before its `<SEG>`, or the question where the answer names nothing."""
    labels, words = [], ""
    for piece in pieces(text, (seg, rej)):
        if piece == seg:
            words = words.strip(" ,.:;!?").rsplit(", ", 1)[-1]
            for lead in ("sure", "and", "it is", "it's", "the segmentation result is", "they are", "the", "a", "an"):
                if words.lower() == lead or words.lower().startswith((lead + " ", lead + ",")):
                    words = words[len(lead) :].strip(" ,")
            labels.append(words or question.strip())
            words = ""
        elif piece != rej:
            words = piece.split(". ")[-1]
    return labels


def distinct(images: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The images without repeats (by identity), and for each of the list which one it is."""
    seen: dict[int, int] = {}
    kept = []
    for image in images:
        if id(image) not in seen:
            seen[id(image)] = len(kept)
            kept.append(image)
    return kept, [seen[id(image)] for image in images]
