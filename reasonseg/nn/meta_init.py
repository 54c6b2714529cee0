"""Modules on torch's meta device, and filling them from checkpoints one tensor at a time.

So each tensor goes directly to its device and precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers.initialization import no_init_weights

from reasonseg.nn.pretrained import refuse
from reasonseg.nn.quantization import is_quantized, quantized


@contextmanager
def meta_init() -> Iterator[None]:
    """Modules built inside have parameters without storage; their buffers have values."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        yield


class WeightFiller:
    """Puts tensors into a module without storage.

    `done()` reports what does not fit, as `pretrained.refuse` does. `dtype` None keeps the
    precision in which each tensor is stored.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, dtype: torch.dtype | None, source: Path
    ):
        self.module, self.device, self.dtype, self.source = module, device, dtype, source
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self.problems: list[tuple[str, str, str]] = []
        self.filled: set[str] = set()

    def put(self, targets: Iterable[str], value: torch.Tensor, key: str = "") -> None:
        """Fills the named parameters with one tensor, called `key` in its file.

        More than one name means that these parameters are tied.
        """
        kept: nn.Parameter | None = None
        for target in targets:
            key = key or target
            if target not in self.parameters:
                self.problems.append(("left over", key, ""))
                continue
            wanted = tuple(self.parameters[target].shape)
            if tuple(value.shape) != wanted:
                self.problems.append(
                    ("reshaped", key, f" is {list(value.shape)}, not {list(wanted)}")
                )
                self.filled.add(target)
                continue
            place, _, name = target.rpartition(".")
            owner = self.module.get_submodule(place)
            if kept is None:
                kept = self._parameter(owner, name, value)
            owner._parameters[name] = kept
            self.filled.add(target)

    def _parameter(self, owner: nn.Module, name: str, value: torch.Tensor) -> nn.Parameter:
        if name == "weight" and is_quantized(owner):
            return quantized(owner, value.to(self.dtype or value.dtype), self.device)
        return nn.Parameter(value.to(self.device, self.dtype or value.dtype, copy=True))

    def done(self, allow: Sequence[str] = ()) -> None:
        """Initialises what is still empty. Raises `InputError` where weights do not fit.

        That is where a key is missing, left over or of another shape, and no prefix in `allow`
        covers it. Weights that may be missing are drawn from a normal distribution with the usual
        standard deviation (0.02); norms are ones, biases zeros.
        """
        missing = [name for name in self.parameters if name not in self.filled]
        refuse([*self.problems, *(("missing", name, "") for name in missing)], self.source, allow)
        for name in self.parameters:
            place, _, last = name.rpartition(".")
            owner = self.module.get_submodule(place)
            empty = owner._parameters[last]
            if empty is not None and empty.is_meta:
                owner._parameters[last] = self._fresh(last, empty.shape)
        for name, buffer in self.module.named_buffers():
            place, _, last = name.rpartition(".")
            # frequencies of rotary embeddings stay float32
            floating = buffer.is_floating_point() and last != "inv_freq"
            self.module.get_submodule(place)._buffers[last] = buffer.to(
                self.device, self.dtype if floating else None
            )

    def _fresh(self, name: str, shape: torch.Size) -> nn.Parameter:
        value = torch.empty(shape, device=self.device, dtype=self.dtype)
        if name == "bias":
            value.zero_()
        elif value.ndim == 1:
            value.fill_(1.0)
        else:
            value.normal_(0, 0.02)
        return nn.Parameter(value)
