"""What backbones share: generation that keeps the states it passes through, and defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessorList

from reasonseg.backbones.base import GeneratedOutput, State
from reasonseg.errors import InputError
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.generation import MarkerLogitsProcessor, last_states
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.tiles import TileFeatures
from reasonseg.structures.markers import Markers, joined
from reasonseg.structures.query import Query


class LanguageBackbone(nn.Module):
    """What kinds share: generation that keeps the states it passes through, and defaults for what a
    kind may leave out.

    A kind gives `model` (a transformers image-text-to-text model), `tokenizer`, `markers`,
    `prompt_inputs(queries)` (the keyword arguments of `model.generate`, padded on the left),
    `length`, `answer_ids`, `teach` and `save`.
    """

    model: Any
    tokenizer: Any
    markers: Markers
    config: Any
    pixels: ImageProcessor
    keeps_prefixes = False
    even_prefixes = True

    @property
    def reads_references(self) -> bool:
        """Whether the language model reads references beside words."""
        return False

    @property
    def patch_encoder(self) -> PatchEncoder | None:
        """The vision tower as others may use it; None where it cannot be run alone."""
        return None

    def regions(self, queries: list[Query], patch_features: Callable | None = None) -> list[Tensor]:
        """What the language model reads of each query's references; see `Backbone.regions`."""
        raise NotImplementedError

    def prefix(self, features: Tensor) -> Tensor:
        """Keys and values of what every prompt about an image begins with; see
        `Backbone.prefix`.
        """
        raise NotImplementedError

    def prefix_in(self, cache: Any) -> Tensor:
        """The same, cut out of the keys and values of whole prompts."""
        raise NotImplementedError

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
        ends = (
            [self.tokenizer.eos_token_id]
            if ends is None
            else ends
            if isinstance(ends, list)
            else [ends]
        )
        return set(ends)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs; none where a kind cannot tell images apart from words."""
        return ()

    def encode(self, images: list) -> Tensor | None:
        """Encodes images for the language model, `[b, ...]`, where there are encoders."""
        return None

    def length(self, query: Query) -> int:
        """Tokens of a query's prompt, at least; no image is encoded for that."""
        raise NotImplementedError

    def check(self, query: Query) -> None:
        """Raises `InputError` for a question that is longer than the model reads."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and (length := self.length(query)) >= limit:
            raise InputError(
                f"the question and its history are {length} tokens long; this model reads {limit}"
            )

    def prompt_inputs(
        self,
        queries: list[Query],
        features: Tensor | TileFeatures | None = None,
        regions: list | None = None,
        prefixes: Tensor | None = None,
    ) -> dict:
        """Keyword arguments of `model.generate` for the questions, padded on the left.

        `features` come from `encode`, `regions` from a kind's own reading of references.
        """
        raise NotImplementedError

    def padded(
        self,
        rows: list[list[int]],
        prefixes: Tensor | None,
        embed: Callable[[Tensor], Tensor],
    ) -> dict[str, Any]:
        """`prompt_inputs` of rows of ids, padded on the left; with `prefixes` `[b, 2 * layers,
        heads, t, d]` their first t ids are read already, and the padding comes after them.
        """
        cut, longest = 0 if prefixes is None else prefixes.shape[-2], max(map(len, rows))
        ids = torch.tensor(
            [row[:cut] + [0] * (longest - len(row)) + row[cut:] for row in rows], device=self.device
        )
        there = [[1] * cut + [0] * (longest - len(row)) + [1] * (len(row) - cut) for row in rows]
        mask = torch.tensor(there, device=self.device)
        inputs: dict[str, Any] = {"inputs_embeds": embed(ids), "attention_mask": mask}
        if prefixes is not None:
            cache = DynamicCache(config=self.model.config.get_text_config())
            for layer, pair in enumerate(prefixes.unflatten(1, (-1, 2)).unbind(1)):
                cache.update(pair[:, 0], pair[:, 1], layer)
            inputs["past_key_values"] = cache
        return inputs

    @staticmethod
    def beginning(cache: Any, length: int) -> Tensor:
        """Keys and values of the first `length` tokens, `[b, 2 * layers, heads, length, d]`, the
        keys of a layer before its values.
        """
        return torch.stack(
            [part[:, :, :length] for layer in cache.layers for part in (layer.keys, layer.values)],
            1,
        )

    def compile(self) -> None:
        """Makes the step of each token faster after a first, slow one. Raises `InputError` where
        a kind cannot.
        """
        raise InputError(
            "compile is for backbone llava; this one runs transformers' generate; leave it out"
        )

    @torch.inference_mode()
    def generate(
        self,
        queries: list[Query],
        features: Tensor | TileFeatures | None = None,
        regions: list | None = None,
        prefixes: Tensor | None = None,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        force_seg: bool,
        absent_threshold: float,
        state: State = "predicting",
        on_cache: Callable[[Any], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[GeneratedOutput]:
        """Answers to several questions, generated as one batch; the same as one by one.

        `features` are `encode` of the images, `regions` what is read of references, `prefixes` what
        is kept of images that were read before. With `state` `at` the last token is fed too, so
        that the state at it is known even where the limit ends the answer. `on_cache` is given the
        keys and values at the end; `on_text(i, text)` is called with the answer to question i so
        far, whenever it grows.
        """
        given = {} if prefixes is None else {"prefixes": prefixes}
        inputs = self.prompt_inputs(queries, features, regions, **given)
        at = state == "at"
        processor = MarkerLogitsProcessor(
            self.markers,
            self.ends,
            len(queries),
            limit=max_new_tokens,
            temperature=temperature,
            seed=seed,
            force_seg=force_seg,
            absent_threshold=absent_threshold,
            on_tokens=self._listener(len(queries), on_text) if on_text is not None else None,
        )
        ids, states, cache = self.say(inputs, processor, max_new_tokens + at)
        if on_cache is not None:
            on_cache(cache)
        shares = torch.stack(processor.probabilities, 1).tolist()
        return [
            self._output(row[:max_new_tokens], states[i], shares[i], at)
            for i, row in enumerate(ids.tolist())
        ]

    def say(
        self, inputs: dict, processor: MarkerLogitsProcessor, limit: int
    ) -> tuple[Tensor, Tensor, Any]:
        """Up to `limit` tokens: ids `[b, n]`, the states that predicted them `[b, n, width]`, and
        the keys and values.

        `inputs` are those of `prompt_inputs`. By `generate`, which knows what each family of models
        wants; a kind that knows its own may say it faster.
        """
        length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        with last_states(self.model.get_output_embeddings()) as caught:
            made = self.model.generate(
                **inputs,
                max_new_tokens=limit,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                logits_processor=LogitsProcessorList([processor]),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(self.ends),
                return_dict_in_generate=True,
            )
        return made.sequences[:, length:], torch.stack(caught, 1), made.past_key_values

    def _listener(
        self, rows: int, on_text: Callable[[int, str], None]
    ) -> Callable[[list[int]], None]:
        """Takes the tokens of a step and calls `on_text` for each text that has grown."""
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
                    on_text(i, text)

        return chosen

    def _output(
        self, ids: list[int], states: Tensor, shares: list[float], at: bool
    ) -> GeneratedOutput:
        length = next((t + 1 for t, i in enumerate(ids) if i in self.ends), len(ids))
        return GeneratedOutput(
            self.decode(ids[:length]), ids[:length], states[: length + at], shares[:length]
        )

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
