"""Token after token through a language model: one loop, its step as it is or compiled over keys and values that stay in place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from warnings import warn

import torch
from torch import nn
from transformers import Cache, DynamicCache, StaticCache

ROUND = 128  # places for keys and values are laid out in multiples of this, so that few lengths are compiled
ALONE = threading.Lock()  # those places serve one batch at a time


class Stepper:
    """Generates with a decoder-only `model` (its `get_decoder`, embedding and head) from embedded prompts.

    `generate` does the same, but what it does around each token takes a small model longer than the token. `compiled` puts
    the step of one token through `torch.compile`, on a GPU as a CUDA graph; its first use takes half a minute.
    Where nothing can be compiled it warns and goes on without.
    """

    def __init__(self, model: nn.Module, compiled: bool = False):
        self.model, self.compiled = model, compiled
        self.places: StaticCache | None = None
        if compiled:
            self.quick = torch.compile(self.step, mode="reduce-overhead" if torch.cuda.is_available() else None)

    def __call__(
        self,
        embedded: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache | None,
        choose: Callable,
        limit: int,
        ends: set[int],
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Ids `[b, n]`, the states that predicted them `[b, n, width]`, and keys and values of the prompts; `n` <= `limit`.

        `embedded` `[b, t, width]` and `mask` `[b, t]` (1: there) are whole prompts, padded anywhere before their ends; what
        `cache` holds of them is not read again. `choose(scores)` picks the next tokens; where all rows have said one of
        `ends`, it stops.
        """
        cache = cache or DynamicCache(config=self.model.config.get_text_config())
        known, padded = cache.get_seq_length(), not bool(mask.all())
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, known:]
        state, scores = self.read(embedded[:, known:], positions, mask if padded else None, cache)
        states, ids = [state], [choose(scores)]
        over, stops = torch.zeros_like(ids[0], dtype=torch.bool), torch.tensor(sorted(ends), device=mask.device)
        with ALONE if self.compiled else nullcontext():
            keys = _Placed(self, cache, mask, limit) if self.compiled else _Growing(cache, mask if padded else None)
            for _ in range(1, limit):
                over |= torch.isin(ids[-1], stops)
                if bool(over.all()):
                    break
                positions = positions[:, -1:] + 1
                state, scores = self.stepped(ids[-1], positions, keys.mask(), keys.cache)
                states.append(state)
                ids.append(choose(scores))
        return torch.stack(ids, 1), torch.stack(states, 1), cache

    def read(self, embedded, positions, mask, cache) -> tuple[torch.Tensor, torch.Tensor]:
        """The last states `[b, width]` and scores `[b, vocabulary]` after `embedded` `[b, t, width]`."""
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        hidden = decoder(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        return hidden, head(hidden)

    def step(self, ids, positions, mask, cache) -> tuple[torch.Tensor, torch.Tensor]:
        """The same after one more token `[b]`."""
        return self.read(self.model.get_input_embeddings()(ids)[:, None], positions, mask, cache)

    def stepped(self, *given) -> tuple[torch.Tensor, torch.Tensor]:
        """`step`, compiled where that is asked for and possible."""
        if not self.compiled:
            return self.step(*given)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            state, scores = self.quick(*given)
            return state.clone(), scores  # a CUDA graph writes to the same place at every step
        except torch._dynamo.exc.TorchDynamoException as error:
            warn(f"nothing can be compiled here, so it runs as it is: {str(error).splitlines()[0]}", stacklevel=2)
            self.compiled = False
            return self.step(*given)


class _Growing:
    """Keys and values that grow, with a mask `[b, t]` that grows beside them where rows are padded."""

    def __init__(self, cache: Cache, there: torch.Tensor | None):
        self.cache, self.there = cache, there

    def mask(self) -> torch.Tensor | None:
        """With one more token."""
        if self.there is not None:
            self.there = torch.cat([self.there, self.there.new_ones(len(self.there), 1)], 1)
        return self.there


class _Placed:
    """Keys and values in places laid out before, with a mask `[b, 1, 1, places]` of those in use."""

    def __init__(self, stepper: Stepper, read: Cache, mask: torch.Tensor, limit: int):
        rows, t = mask.shape
        kept, like = stepper.places, read.layers[0].keys
        need = -(-(t + limit) // ROUND) * ROUND
        old = kept.layers[0].keys if kept is not None else None
        fits = old is not None and len(old) == rows and need <= old.shape[2] <= 2 * need
        if not fits or (old.dtype, old.device) != (like.dtype, like.device):
            kept = stepper.places = StaticCache(config=stepper.model.config.get_text_config(), max_cache_len=need)
        kept.reset()
        for i, layer in enumerate(read.layers):
            kept.update(layer.keys, layer.values, i)
        self.cache, self.used = kept, t
        self.there = torch.zeros(rows, 1, 1, kept.layers[0].keys.shape[2], dtype=torch.bool, device=mask.device)
        self.there[:, 0, 0, :t] = mask.bool()

    def mask(self) -> torch.Tensor:
        """With one more token."""
        self.there[..., self.used] = True
        self.used += 1
        return self.there
