"""Token-by-token generation with a language model: one loop, with a plain or a compiled step.

The compiled step works on keys and values in a static cache, whose memory does not move.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, LogitsProcessor, StaticCache

from reasonseg.structures.markers import Markers

# static caches are allocated in multiples of this length, and for 1, 2, 4, 8 ... rows, so that few
# shapes are compiled
ROUND = 128
BUDGET = 2**31  # bytes of static caches that are kept; the least recently used are dropped


class MarkerLogitsProcessor(LogitsProcessor):
    """Decoding rules, one row per question: when to refuse, and that a mask is given in any case.

    Where the most likely token is a marker, `<REJ>` is taken if its share of the probability of
    both markers is at least `absent_threshold` (0..1). With `force_seg` no `<REJ>` is generated,
    and `<SEG>` is inserted before an answer that would end without one. A temperature above 0 adds
    Gumbel noise from a separate generator for each row, so that a batch samples the same tokens as
    its questions one by one.
    """

    def __init__(
        self,
        markers: Markers,
        ends: set[int],
        rows: int,
        *,
        limit: int,
        temperature: float,
        seed: int,
        force_seg: bool,
        absent_threshold: float,
        on_tokens: Callable | None = None,
    ):
        self.on_tokens = on_tokens
        self.markers, self.ends, self.limit = markers, ends, limit
        self.temperature, self.force_seg, self.absent_threshold = (
            temperature,
            force_seg,
            absent_threshold,
        )
        self.noise = [torch.Generator().manual_seed(seed) for _ in range(rows)]
        self.steps = 0
        self.said_seg = torch.zeros(rows, dtype=torch.bool)
        self.probabilities: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[b, vocabulary]` with the chosen token as maximum, for transformers'
        `generate`.
        """
        return torch.full_like(scores.float(), -torch.inf).scatter(
            1, self.choose(scores)[:, None], 0.0
        )

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
            ending = torch.tensor([int(c) in self.ends for c in choice]) | (
                self.steps == self.limit
            )
            choice = torch.where((ending & ~self.said_seg).to(choice.device), seg, choice)
            self.said_seg |= (choice == seg).cpu()
        self.probabilities.append(shares.gather(1, choice[:, None])[:, 0])
        if self.on_tokens is not None:
            self.on_tokens(choice.tolist())
        return choice

    def _drawn(self, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.noise]).to(
            scores.device
        )
        return scores / self.temperature - torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))


@contextmanager
def last_states(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the input of the language model's head: `[b, width]` per step, last position."""
    caught: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0][:, -1]))
    try:
        yield caught
    finally:
        hook.remove()


class Stepper:
    """Generates answers with a decoder-only `model` from embedded prompts.

    `model` is a transformers model with `get_decoder`, input embeddings and a head. transformers'
    `generate` does the same, but for a small model its overhead per token is larger than the token
    itself. Rules in a checkpoint's own generation config are not applied. `compiled` compiles the
    step of one token with `torch.compile`, on a GPU as a CUDA graph; the first use takes half a
    minute. Where nothing can be compiled, it warns and continues without compilation.
    """

    def __init__(self, model: Any, compiled: bool = False):
        self.model, self.compiled = model, compiled
        self.quick: Callable | None = None
        self.kept: list[StaticCache] = []  # the most recently used last
        # static caches serve one batch at a time; a concurrent batch runs uncompiled
        self.taken = threading.Lock()

    def __deepcopy__(self, memo) -> Stepper:
        from copy import deepcopy

        return Stepper(deepcopy(self.model, memo), self.compiled)

    def __call__(
        self,
        embedded: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache | None,
        choose: Callable,
        limit: int,
        ends: set[int],
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Generates up to `limit` tokens: ids `[b, n]`, states `[b, n, width]`, and the cache.

        State i is the one that predicted id i. The cache holds keys and values, those of the
        prompts first. `embedded` `[b, t, width]` and `mask` `[b, t]` (1: a token, 0: padding) are
        whole prompts; the padding may be anywhere before their ends. Positions that `cache` already
        holds are not computed again. `choose(scores)` returns the next tokens. Generation stops
        where every row has one of `ends`.
        """
        cache = cache or DynamicCache(config=self.model.config.get_text_config())
        known, padded = cache.get_seq_length(), not bool(mask.all())
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, known:]
        state, scores = self.read(embedded[:, known:], positions, mask if padded else None, cache)
        states, ids = [state], [choose(scores)]
        over, stops = (
            torch.zeros_like(ids[0], dtype=torch.bool),
            torch.tensor(sorted(ends), device=mask.device),
        )
        steps: _Steps = _Steps(self, cache, mask if padded else None)
        mine = self.compiled and limit > 1 and self.taken.acquire(blocking=False)
        try:
            steps = _QuickSteps(self, cache, mask, limit, steps) if mine else steps
            for _ in range(1, limit):
                over |= torch.isin(ids[-1], stops)
                if bool(over.all()):
                    break
                positions = positions[:, -1:] + 1
                state, scores = steps(ids[-1], positions)
                states.append(state)
                ids.append(choose(scores))
        finally:
            if mine:
                self.taken.release()
        return torch.stack(ids, 1), torch.stack(states, 1), cache

    def read(self, embedded, positions, mask, cache) -> tuple[torch.Tensor, torch.Tensor]:
        """Last states `[b, width]`, scores `[b, vocabulary]` after inputs `embedded`
        `[b, t, width]`.
        """
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        hidden = decoder(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return hidden, head(hidden)

    def step(self, ids, positions, mask, cache) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as `read`, after one more token `[b]`."""
        return self.read(self.model.get_input_embeddings()(ids)[:, None], positions, mask, cache)

    def places(self, rows: int, length: int, like: torch.Tensor) -> StaticCache:
        """An empty static cache for `rows` rows and `length` tokens, a kept one where it fits.

        `like` gives the dtype and the device.
        """
        for kept in self.kept:
            first: Any = kept.layers[0]
            old = first.keys
            fits = len(old) == rows and length <= old.shape[2] <= 2 * length
            if fits and (old.dtype, old.device) == (like.dtype, like.device):
                self.kept.remove(kept)
                kept.reset()
                break
        else:
            kept = StaticCache(
                config=self.model.config.get_text_config(),
                max_cache_len=-(-length // ROUND) * ROUND,
            )
        self.kept.append(kept)
        return kept

    def trim(self) -> None:
        """Drops the least recently used caches down to `BUDGET` bytes; the latest one stays."""
        while len(self.kept) > 1 and sum(map(_bytes_of, self.kept)) > BUDGET:
            self.kept.pop(0)


def _bytes_of(cache: StaticCache) -> int:
    """Bytes of the keys and values in a static cache."""
    layers: Any = cache.layers
    return sum(2 * layer.keys.nbytes for layer in layers)


class _Steps:
    """Steps with a cache that grows; where rows are padded, a mask `[b, t]` grows with it."""

    def __init__(self, stepper: Stepper, cache: Cache, there: torch.Tensor | None):
        self.stepper, self.cache, self.there = stepper, cache, there

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States and scores after one more token `[b]` at `positions` `[b, 1]`."""
        if self.there is not None:
            self.there = torch.cat([self.there, self.there.new_ones(len(self.there), 1)], 1)
        return self.stepper.step(ids, positions, self.there, self.cache)


class _QuickSteps(_Steps):
    """Compiled steps with a static cache; mask `[rows, 1, 1, places]` of the positions in use."""

    def __init__(
        self, stepper: Stepper, read: Cache, mask: torch.Tensor, limit: int, plain: _Steps
    ):
        self.count, self.used = mask.shape
        layers: Any = read.layers  # filled by the prompts, so that all have keys and values
        rows, like = 1 << (self.count - 1).bit_length(), layers[0].keys
        super().__init__(stepper, stepper.places(rows, self.used + limit, like), None)
        self.plain, self.more, self.begun, self.possible = plain, rows - self.count, False, True
        for i, layer in enumerate(layers):
            keys, values = (
                F.pad(x[..., : self.used, :], (0, 0, 0, 0, 0, 0, 0, self.more))
                for x in (layer.keys, layer.values)
            )
            self.cache.update(keys, values, i)
        stepper.trim()
        first: Any = self.cache.layers[0]
        places = first.keys.shape[2]
        self.there = torch.zeros(rows, 1, 1, places, dtype=torch.bool, device=mask.device)
        self.there[: self.count, 0, 0, : self.used] = mask.bool()
        if stepper.quick is None:
            stepper.quick = torch.compile(
                stepper.step, mode="reduce-overhead" if like.is_cuda else None
            )

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As above; where the first step cannot be compiled, this and all others run uncompiled."""
        quick = self.stepper.quick
        if not self.possible or quick is None:
            return self.plain(ids, positions)
        self.there[..., self.used] = True
        given = F.pad(ids, (0, self.more)), F.pad(positions, (0, 0, 0, self.more))
        try:
            torch.compiler.cudagraph_mark_step_begin()
            state, scores = quick(*given, self.there, self.cache)
        except RuntimeError as error:
            if self.begun:
                raise
            reason = str(error).strip().splitlines()[0]
            warn(
                f"compile: nothing can be compiled here, leave it out ({reason}); generation "
                "continues without it",
                stacklevel=2,
            )
            self.stepper.compiled = self.possible = False
            self.stepper.kept.clear()
            return self.plain(ids, positions)
        self.used, self.begun = self.used + 1, True
        # a CUDA graph writes its output to the same memory at every step
        return state[: self.count].clone(), scores[: self.count].clone()
