"""Finds images that are copies of one another, saved again or resized included."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import open_image, upright

SIDE = 32  # of the thumbnails that are compared
ASPECT = 0.03  # by which the ratios of width and height of copies differ
MEAN, MOST = 2.0, 24  # grey levels (0..255) by which copies differ on average, and at most


def copies(sources: Sequence[Path | bytes]) -> list[int]:
    """The number of the first image of which each image is a copy; its own where it is none.

    Two images are copies where their thumbnails differ by less than `MEAN` grey levels on average
    and `MOST` at any place, and their aspect ratios by less than `ASPECT`. An image that cannot be
    read is no copy. A copy of a copy counts as one of the first.
    """
    seen = [_thumbnail_of(source) for source in sources]
    parent = list(range(len(seen)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in _pairs([(i, *found) for i, found in enumerate(seen) if found is not None]):
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(seen))]


def _pairs(known: list[tuple[int, bytes, float]]) -> Iterator[tuple[int, int]]:
    """The numbers of two images that are copies, from (number, thumbnail, aspect ratio) of each."""
    if not known:
        return
    joined = np.frombuffer(b"".join(values for _, values, _ in known), np.uint8)
    values = joined.reshape(len(known), SIDE, SIDE).astype(np.int16)
    blocks = values.reshape(len(known), 4, SIDE // 4, 4, SIDE // 4).mean((2, 4)).reshape(-1, 16)
    means, aspects = blocks.mean(1), np.array([aspect for *_, aspect in known])
    order = np.argsort(means, kind="stable")
    ends = np.searchsorted(means[order], means[order] + MEAN, side="right")
    for place, k in enumerate(order):
        # the means of copies, and those of their parts, are close: few images are compared whole
        near = order[place + 1 : ends[place]]
        near = near[np.abs(blocks[near] - blocks[k]).max(1, initial=0) < MOST]
        off = np.abs(values[near] - values[k]).reshape(len(near), SIDE * SIDE)
        alike = (off.mean(1) < MEAN) & (off.max(1, initial=0) < MOST)
        alike &= np.abs(aspects[near] / aspects[k] - 1) < ASPECT
        for other in near[alike]:
            yield known[k][0], known[other][0]


def _thumbnail_of(source: Path | bytes) -> tuple[bytes, float] | None:
    if isinstance(source, bytes):
        return _of_bytes(_Data(source))
    try:
        about = source.stat()
    except (OSError, ValueError):
        return None
    return _of_file(source, about.st_size, about.st_mtime_ns)


class _Data:
    """Bytes that are compared by their hash."""

    def __init__(self, data: bytes):
        self.data, self.key = data, hashlib.blake2b(data, digest_size=16).digest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Data) and self.key == other.key


@lru_cache(maxsize=100_000)
def _of_file(path: Path, size: int, time: int) -> tuple[bytes, float] | None:
    return _thumbnail(path)


@lru_cache(maxsize=1000)
def _of_bytes(data: _Data) -> tuple[bytes, float] | None:
    return _thumbnail(data.data)


def _thumbnail(source: Path | bytes) -> tuple[bytes, float] | None:
    """(grey values of a thumbnail, width / height) of an image; None where it cannot be read."""
    try:
        with open_image(source, decode=False) as picture:
            picture.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG is decoded small
            picture.load()
            picture = upright(picture)
            small = picture.convert("RGB").convert("L").resize((SIDE, SIDE), reducing_gap=2.0)
            return small.tobytes(), picture.width / picture.height
    except (InputError, OSError, ValueError):
        return None
