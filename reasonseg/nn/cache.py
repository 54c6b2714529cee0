"""A cache of encoded images: a second question about an image runs no encoder."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

T = TypeVar("T")
AT_ONCE = 32  # images of 256 pixels that are encoded in one batch
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
BUDGET = 2 * 2**30  # bytes; SAM's embedding of one image takes 4 MiB in float32


class Lock:
    """A lock that one thread may take several times; a copy of its owner gets a new one."""

    def __init__(self):
        self.held = threading.RLock()

    def __enter__(self) -> None:
        self.held.acquire()

    def __exit__(self, *_: object) -> None:
        self.held.release()

    def __reduce__(self) -> tuple:
        return Lock, ()


def in_turn(method: Callable[..., T]) -> Callable[..., T]:
    """Makes the calls of a method run one after another, whatever threads they come from.

    Its object has the `Lock` `turn`.
    """

    @wraps(method)
    def wrapped(self: Any, *values: Any, **named: Any) -> T:
        with self.turn:
            return method(self, *values, **named)

    return wrapped


class ImageCache:
    """Encoded images by content, up to `budget` bytes; the least recently used are dropped first.

    Threads may share a cache.

    Values are tensors `[b, ...]`, or objects with the same operations (`value[i:j]`, `clone()`,
    `nbytes`, and `joined` in place of `torch.cat`). A value is found again only under the weights
    that computed it.
    """

    def __init__(self, budget: int = BUDGET):
        self.budget, self.bytes = budget, 0
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()
        self.lock = Lock()

    def clear(self) -> None:
        """Removes all entries."""
        with self.lock:
            self.kept.clear()
            self.bytes = 0

    def __call__(
        self,
        encoders: Sequence[Any],
        images: Sequence[np.ndarray],
        encode: Callable[[list], Any],
        side: int = 0,
    ) -> Any:
        """`encode(images)`, one row per image; cached rows are not computed again. See `fetch`."""
        return self.fetch(encoders, images, encode, side)[0]

    def fetch(
        self,
        encoders: Sequence[Any],
        images: Sequence[np.ndarray],
        encode: Callable[[list], Any],
        side: int = 0,
    ) -> tuple[Any, list[bool]]:
        """The rows of the images, and for each image whether it was in the cache before.

        `encoders` are the modules that `encode` runs. `side` is the side of their input in pixels:
        large images are encoded in small batches, since SAM's attention at 1024 pixels takes half a
        GiB per image.
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
        """Stores the row of an image that these encoders computed outside of the cache."""
        self.keep((tuple(version_of(module) for module in encoders), digest(image)), row)

    def find(self, key: Hashable) -> Any:
        """The row stored under a key, now the most recently used; None where there is none."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def keep(self, key: Hashable, row: Any) -> None:
        """Stores a row; the least recently used rows are dropped to make room.

        A row of more than `budget` bytes is not stored.
        """
        with self.lock:
            if (old := self.kept.pop(key, None)) is not None:
                self.bytes -= old.nbytes
            if row.nbytes > self.budget:
                return
            self.kept[key] = row
            self.bytes += row.nbytes
            while self.bytes > self.budget:
                self.bytes -= self.kept.popitem(last=False)[1].nbytes


_settled: ContextVar[dict[int, tuple] | None] = ContextVar("_settled", default=None)


@contextmanager
def hashed_once() -> Iterator[None]:
    """Inside this context `digest` and `version_of` hash each image and module only once.

    Neither images nor weights may change while it lasts.
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
        # the object is stored too, so that its id cannot be reused
        known[id(thing)] = (
            thing,
            compute(thing),
        )
    return known[id(thing)][1]


def digest(image: np.ndarray) -> bytes:
    """A hash of an image's shape and pixels, 16 bytes (BLAKE2b)."""
    return _once(image, _digest)


def version_of(module: nn.Module) -> tuple:
    """A key that changes whenever a parameter is written, through `.data` too, moved or cast.

    Values that only change their places within one parameter are not noticed where they are written
    through `.data`.
    """
    return _once(module, _version)


def _digest(image: np.ndarray) -> bytes:
    pixels = np.ascontiguousarray(image).reshape(-1)
    return hashlib.blake2b(pixels.data, digest_size=16, salt=b"%dx%d" % image.shape[:2]).digest()


def _version(module: nn.Module) -> tuple:
    parameters = list(module.parameters())
    first = parameters[0]
    written = sum(0 if p.is_inference() else p._version for p in parameters)
    places = tuple(p.data_ptr() for p in parameters)
    known = _words.get(module)
    if known is None or known[0] != places:
        known = _words[module] = places, [_as_words(p.detach()) for p in parameters]
    sums = [(_as_words(w.contiguous()) if w.is_floating_point() else w).sum() for w in known[1]]
    if len({words.device for words in known[1]}) > 1:
        sums = [total.cpu() for total in sums]
    return (id(module), first.device, first.dtype, places, written, *torch.stack(sums).tolist())


# the parameters of a module by their addresses, seen as whole numbers
_words: WeakKeyDictionary[nn.Module, tuple[tuple, list[torch.Tensor]]] = WeakKeyDictionary()


def _as_words(value: torch.Tensor) -> torch.Tensor:
    """A view of the bits of a tensor as whole numbers of 64 bits, or fewer where they do not fit.

    A tensor that is not contiguous is viewed in the order of its memory; one with gaps is kept as
    it is.
    """
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    dense = value.permute(order)
    if not dense.is_contiguous():
        return value
    flat = dense.view(-1)
    return flat.view(torch.int64 if flat.nbytes % 8 == 0 else WHOLE[flat.element_size()])
