"""Encoded images, kept so that a second question about one costs no encoder."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn

AT_ONCE = 32  # pictures of 256 pixels that are encoded together
BUDGET = 2 * 2**30  # bytes; SAM's embedding of one image takes 4 MiB in float32


class ImageCache:
    """What encoders made of images, by content, up to `budget` bytes; the least recently used goes
    first.

    Values are tensors `[b, ...]`, or things like them (`value[i:j]`, `clone()`, `nbytes`, and
    `joined` for `torch.cat`). They are found again only under the weights that made them.
    """

    def __init__(self, budget: int = BUDGET):
        self.budget, self.bytes = budget, 0
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()

    def clear(self) -> None:
        """Forgets everything."""
        self.kept.clear()
        self.bytes = 0

    def __call__(
        self,
        encoders: Sequence[Any],
        images: Sequence[np.ndarray],
        encode: Callable[[list], Any],
        side: int = 0,
    ) -> Any:
        """`encode(images)` with a row for each image, computed only for those that were not
        seen; see `fetch`.
        """
        return self.fetch(encoders, images, encode, side)[0]

    def fetch(
        self,
        encoders: Sequence[Any],
        images: Sequence[np.ndarray],
        encode: Callable[[list], Any],
        side: int = 0,
    ) -> tuple[Any, list[bool]]:
        """The rows of the images, and of each whether it was here before.

        `encoders` are the modules that `encode` runs, `side` the pixels of their pictures: large
        ones go through in small numbers, since SAM's attention at 1024 pixels takes half a GiB an
        image.
        """
        version = tuple(version_of(module) for module in encoders)
        keys = [(version, digest(image)) for image in images]
        rows = {key: row for key in keys if (row := self.find(key)) is not None}
        cached = [key in rows for key in keys]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in rows}
        if new:
            waiting, at_once = list(new), max(AT_ONCE * 256**2 // max(side, 1) ** 2, 1)
            for start in range(0, len(waiting), at_once):
                part = waiting[start : start + at_once]
                encoded = encode([new[key] for key in part])
                for i, key in enumerate(part):
                    rows[key] = encoded[i : i + 1].clone()
                    self.keep(key, rows[key])
                if part == keys:
                    return encoded, cached
        first = rows[keys[0]]
        join = torch.cat if isinstance(first, torch.Tensor) else type(first).joined
        return join([rows[key] for key in keys]), cached

    def put(self, encoders: Sequence[Any], image: np.ndarray, row: Any) -> None:
        """Keeps what these encoders made of an image elsewhere."""
        self.keep((tuple(version_of(module) for module in encoders), digest(image)), row)

    def find(self, key: Hashable) -> Any:
        """What is kept under a key; it was used now. None where there is nothing."""
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def keep(self, key: Hashable, row: Any) -> None:
        """Keeps a row; what was not used for longest makes room."""
        if row.nbytes > self.budget:
            return
        self.kept[key] = row
        self.bytes += row.nbytes
        while self.bytes > self.budget:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes


_settled: ContextVar[dict[int, tuple] | None] = ContextVar("_settled", default=None)


@contextmanager
def hashed_once() -> Iterator[None]:
    """While it lasts neither pictures nor weights change: `digest` and `version_of` look at each
    of them once.
    """
    outer = _settled.set({})
    try:
        yield
    finally:
        _settled.reset(outer)


def _once(thing: Any, compute: Callable[[Any], Any]) -> Any:
    known = _settled.get()
    if known is None:
        return compute(thing)
    if id(thing) not in known:
        # kept with its value, so that its id stays its own
        known[id(thing)] = (
            thing,
            compute(thing),
        )
    return known[id(thing)][1]


def digest(image: np.ndarray) -> bytes:
    """A hash of an image's shape and pixels."""
    return _once(image, _digest)


def version_of(module: nn.Module) -> tuple:
    """Changes whenever a parameter is written to in place, moved or cast."""
    return _once(module, _version)


def _digest(image: np.ndarray) -> bytes:
    pixels = np.ascontiguousarray(image).reshape(-1)
    return hashlib.blake2b(pixels.data, digest_size=16, salt=b"%dx%d" % image.shape[:2]).digest()


def _version(module: nn.Module) -> tuple:
    parameters = list(module.parameters())
    first = parameters[0]
    written = sum(0 if p.is_inference() else p._version for p in parameters)
    return (id(module), first.device, first.dtype, first.data_ptr(), written)
