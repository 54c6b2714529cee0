"""What backbones share: markers, generation that keeps the states it passes through, and what teaching returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

from reasonseg.errors import InputError

SEG, REJ = "<SEG>", "<REJ>"
SEG_NAMES, REJ_NAMES = (SEG, "[SEG]"), (REJ, "[REJ]")  # LISA's and GSVA's spellings are read as they are
IGNORED = -100  # the label of a token that is not taught


@dataclass
class Spoken:
    """One generated answer. `states[t]` `[width]` is the state that predicted `ids[t]`, `probabilities[t]` its share.

    `states` holds one more where the answer was read `at` its tokens: the state after the last.
    """

    text: str
    ids: list[int]
    states: torch.Tensor
    probabilities: list[float]


@dataclass
class Taught:
    """Teacher-forced samples: summed cross entropy, its number of tokens, and the states of every `<SEG>` in order.

    `states` `[m, width]`; `of[m]` says which sample each belongs to. `correct` counts tokens predicted right.
    """

    cross_entropy: torch.Tensor
    tokens: int
    states: torch.Tensor
    of: list[int]
    correct: torch.Tensor


@dataclass(frozen=True)
class Markers:
    """Ids of `<SEG>` and `<REJ>` in a tokenizer; `rej` is None where the model was never taught to refuse."""

    seg: int
    rej: int | None
    seg_text: str
    rej_text: str

    @property
    def ids(self) -> list[int]:
        """Of those there are."""
        return [self.seg] if self.rej is None else [self.seg, self.rej]

    @classmethod
    def find(cls, tokenizer) -> Markers:
        """Reads the ids from the vocabulary. Raises `InputError` where `<SEG>` is not a single token."""
        vocabulary = tokenizer.get_vocab()
        seg = next((name for name in SEG_NAMES if name in vocabulary), None)
        if seg is None:
            raise InputError("the tokenizer has no <SEG>; add it with reasonseg.backbones.base.add_markers(tokenizer)")
        ids = tokenizer.encode(seg, add_special_tokens=False)
        if vocabulary[seg] not in ids or len([i for i in ids if i != vocabulary[seg]]) > 1:
            raise InputError(f"the tokenizer cuts {seg} into {ids}; it must be one token ({vocabulary[seg]})")
        rej = next((name for name in REJ_NAMES if name in vocabulary), None)
        return cls(vocabulary[seg], vocabulary[rej] if rej else None, seg, rej or REJ)


def add_markers(tokenizer, model: nn.Module | None = None, names: tuple[str, ...] = (SEG, REJ)) -> Markers:
    """Adds the markers to any tokenizer (those it lacks) and grows the model's embeddings; returns their ids."""
    tokenizer.add_tokens([name for name in names if name not in tokenizer.get_vocab()], special_tokens=False)
    if model is not None and model.get_input_embeddings().num_embeddings < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    return Markers.find(tokenizer)


def as_new(tokenizer):
    """The tokenizer without the padding and truncation it was last called with, which a saved one would keep."""
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        fast.no_truncation()
        fast.no_padding()
    return tokenizer


def pieces(text: str, names: tuple[str, ...]) -> list[str]:
    """`text` cut at the names, which stay as pieces of their own; white space around them goes."""
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return [p for p in (part.strip() for part in parts) if p]


def joined(parts: list[str]) -> str:
    """Pieces as a sentence: a space between them, none before punctuation."""
    text = ""
    for part in parts:
        text += part if not text or part[0] in ".,:;!?" else " " + part
    return text


class Chooser(LogitsProcessor):
    """Rules of the answer, one row a question: where to refuse, and that a mask is asked for in any case.

    Where the likeliest token is a marker, `<REJ>` wins if its share of the two is at least `absent_threshold`.
    With `force_seg` no `<REJ>` is said, and an answer that would end without `<SEG>` says it first. A temperature above 0
    adds Gumbel noise from a generator of the row's own, so that a batch samples what one by one would.
    """

    def __init__(
        self, markers: Markers, ends: set[int], rows: int, *,
        limit: int, temperature: float, seed: int, force_seg: bool, absent_threshold: float, chosen: Callable | None = None,
    ):  # fmt: skip
        self.chosen = chosen
        self.markers, self.ends, self.limit = markers, ends, limit
        self.temperature, self.force_seg, self.absent_threshold = temperature, force_seg, absent_threshold
        self.noise = [torch.Generator().manual_seed(seed) for _ in range(rows)]
        self.steps = 0
        self.said_seg = torch.zeros(rows, dtype=torch.bool)
        self.probabilities: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores in which the chosen token of each row is the greatest, as `generate` wants them."""
        return torch.full_like(scores.float(), -torch.inf).scatter(1, self.choose(scores)[:, None], 0.0)

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """The next token of each row `[b]`, from scores `[b, vocabulary]`."""
        scores = scores.float()
        shares = scores.softmax(-1)
        choice = self._drawn(scores).argmax(-1) if self.temperature > 0 else scores.argmax(-1)
        seg, rej = self.markers.seg, self.markers.rej
        if rej is not None:
            at_marker = (choice == seg) | (choice == rej)
            refuse = shares[:, rej] >= self.absent_threshold * (shares[:, seg] + shares[:, rej])
            refuse &= not self.force_seg
            choice = torch.where(at_marker, torch.where(refuse, rej, seg), choice)
        self.steps += 1
        if self.force_seg:
            ending = torch.tensor([int(c) in self.ends for c in choice]) | (self.steps == self.limit)
            choice = torch.where((ending & ~self.said_seg).to(choice.device), seg, choice)
            self.said_seg |= (choice == seg).cpu()
        self.probabilities.append(shares.gather(1, choice[:, None])[:, 0])
        if self.chosen is not None:
            self.chosen(choice.tolist())
        return choice

    def _drawn(self, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.noise]).to(scores.device)
        return scores / self.temperature - torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))


@contextmanager
def last_states(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what enters the language model's head: `[b, width]` of the last position, once a step."""
    caught: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0][:, -1]))
    try:
        yield caught
    finally:
        hook.remove()


class Speaker(nn.Module):
    """A backbone. A kind gives `model`, `tokenizer`, `prompt_inputs` and `answer_inputs`; speaking is shared.

    `model` is a transformers image-text-to-text model; `prompt_inputs(queries)` are the keyword arguments of its
    `generate`, padded on the left; `teach(samples)` runs true answers through it.
    """

    model: nn.Module
    tokenizer: object
    markers: Markers

    @property
    def width(self) -> int:
        """Width of the states."""
        return self.model.get_output_embeddings().in_features

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.get_input_embeddings().weight.device

    @property
    def layers(self) -> nn.ModuleList:
        """The language model's layers."""
        return self.model.get_decoder().layers

    @property
    def ends(self) -> set[int]:
        """Ids that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
        return set(ends)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs; none where a kind cannot tell images apart from words."""
        return ()

    def encode(self, images: list) -> torch.Tensor | None:
        """What the language model sees of each image, `[b, ...]`, where there are encoders."""
        return None

    def length(self, query) -> int:
        """Tokens of a query's prompt, at least; no image is encoded for that."""
        raise NotImplementedError

    def check(self, query) -> None:
        """Raises `InputError` for a question that is longer than the model reads."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and (length := self.length(query)) >= limit:
            raise InputError(f"the question and its history are {length} tokens long; this model reads {limit}")

    def prompt_inputs(self, queries: list, features: torch.Tensor | None = None, regions: list | None = None) -> dict:
        """Keyword arguments of `model.generate` for the questions, padded on the left.

        `features` come from `encode`, `regions` from a kind's own reading of references.
        """
        raise NotImplementedError

    def compile(self) -> None:
        """From now on a word is a compiled step over keys and values that stay in place: faster, after a first, slow one.

        Raises `InputError` where a kind cannot.
        """
        raise InputError("compile is for backbone llava; this one speaks through transformers' generate; leave it out")

    @torch.inference_mode()
    def speak(
        self, queries: list, features: torch.Tensor | None = None, regions: list | None = None,
        prefixes: torch.Tensor | None = None, *, max_new_tokens: int, temperature: float, seed: int, force_seg: bool,
        absent_threshold: float, at: bool = False, cached: Callable[[Any], None] | None = None,
        heard: Callable[[int, str], None] | None = None,
    ) -> list[Spoken]:  # fmt: skip
        """Answers to several questions, generated as one batch; the same as one by one.

        `prefixes` are what a kind keeps of images it has read before; `cached` is given the keys and values when all is said.
        `at` feeds the last token too, so that the state at it is known even where the limit ends the answer. `heard(i, text)`
        is called with what has been said to question i so far, whenever that grows.
        """
        given = {} if prefixes is None else {"prefixes": prefixes}
        inputs = self.prompt_inputs(queries, features, regions, **given)
        chooser = Chooser(
            self.markers, self.ends, len(queries), limit=max_new_tokens, temperature=temperature, seed=seed,
            force_seg=force_seg, absent_threshold=absent_threshold, chosen=heard and self._listener(len(queries), heard),
        )  # fmt: skip
        ids, states, cache = self.say(inputs, chooser, max_new_tokens + at)
        if cached is not None:
            cached(cache)
        shares = torch.stack(chooser.probabilities, 1).tolist()
        return [self._spoken(row[:max_new_tokens], states[i], shares[i], at) for i, row in enumerate(ids.tolist())]

    def say(self, inputs: dict, chooser: Chooser, limit: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Up to `limit` tokens: ids `[b, n]`, the states that predicted them `[b, n, width]`, and the keys and values.

        `inputs` are those of `prompt_inputs`. By `generate`, which knows what each family of models wants; a kind that
        knows its own may say it faster.
        """
        length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        with last_states(self.model.get_output_embeddings()) as caught:
            made = self.model.generate(
                **inputs, max_new_tokens=limit, do_sample=False, num_beams=1, use_cache=True,
                logits_processor=LogitsProcessorList([chooser]), pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(self.ends), return_dict_in_generate=True,
            )  # fmt: skip
        return made.sequences[:, length:], torch.stack(caught, 1), made.past_key_values

    def _listener(self, rows: int, heard: Callable[[int, str], None]) -> Callable[[list[int]], None]:
        """Takes the tokens of a step and tells `heard` whose text has grown."""
        ids: list[list[int]] = [[] for _ in range(rows)]
        texts = [""] * rows

        def chosen(tokens: list[int]) -> None:
            for i, token in enumerate(tokens):
                if ids[i] and ids[i][-1] in self.ends:
                    continue
                ids[i].append(token)
                text = self.decode(ids[i])
                if text != texts[i] and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    texts[i] = text
                    heard(i, text)

        return chosen

    def _spoken(self, ids: list[int], states: torch.Tensor, shares: list[float], at: bool) -> Spoken:
        length = next((t + 1 for t, i in enumerate(ids) if i in self.ends), len(ids))
        return Spoken(self.decode(ids[:length]), ids[:length], states[: length + at], shares[:length])

    def decode(self, ids: list[int]) -> str:
        """The text of generated ids with the markers in it, ends left out."""
        names = {self.markers.seg: self.markers.seg_text, self.markers.rej: self.markers.rej_text}
        parts: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in names:
                if token not in self.ends:
                    run.append(token)
                continue
            text = self.tokenizer.decode(run, skip_special_tokens=True).strip() if run else ""
            parts += [text] if text else []
            parts += [names[token]] if token is not None else []
            run = []
        return joined(parts)
