"""Functions on masks (bool `[h, w]`) and their COCO run-length encodings (RLE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import MAX_PIXELS

FIRST, MORE, SIGN, BITS = 48, 32, 16, 5  # COCO's code of a number in characters
LONGEST = 7  # characters of a number: 35 bits


def coco_tools() -> Any:
    """The module `pycocotools.mask`, loaded at its first use."""
    from pycocotools import mask

    return mask


def to_rle(mask: np.ndarray) -> dict:
    """The COCO run-length encoding of a mask: `{"size": [h, w], "counts": str}`."""
    rle = coco_tools().encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def from_rle(rle: dict) -> np.ndarray:
    """The mask of a COCO RLE as bool `[h, w]`.

    `counts` is a string or a list of run lengths. Raises `InputError` where it is malformed, or
    where its runs do not add up to the size.
    """
    (height, width), runs = _size(rle), run_lengths(rle)
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(values.reshape(width, height).T)


def area_of(rle: dict) -> int:
    """Number of pixels of a COCO RLE, without decoding it."""
    return int(run_lengths(rle)[1::2].sum())


def run_lengths(rle: dict) -> np.ndarray:
    """The run lengths of a COCO RLE, int64 `[n]`: of background, object, background and so on.

    COCO's own library leaves pixels uninitialised where the runs are too short. Raises `InputError`
    where they are malformed or do not add up to the size.
    """
    height, width = _size(rle)
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        runs = _from_text(counts)
    elif isinstance(counts, list) and all(type(c) is int and abs(c) < 2**40 for c in counts):
        runs = np.array(counts, np.int64)
    else:
        raise InputError(
            f"not a COCO run-length encoding: counts are a {type(counts).__name__}, not a string "
            "or a list of whole numbers"
        )
    if (runs < 0).any():
        raise InputError(f"not a COCO run-length encoding: a run of {runs.min()} pixels")
    if (total := int(runs.sum())) != height * width:
        raise InputError(
            f"not a COCO run-length encoding: its runs add up to {total} of {height * width} pixels"
        )
    return runs


def _size(rle: dict) -> tuple[int, int]:
    size = rle.get("size") if isinstance(rle, dict) else None
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(type(s) is int and s > 0 for s in size)
    ):
        raise InputError(f"not a COCO run-length encoding: size {size!r} is not [height, width]")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"not a COCO run-length encoding: {size[0]}x{size[1]} is too large")
    return size[0], size[1]


def _from_text(counts: str | bytes) -> np.ndarray:
    """The runs of COCO's text form: numbers of 5 bits a character, differences from the third on.

    Equals `rleFrString` of the COCO API.
    """
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise InputError("not a COCO run-length encoding: counts are not ASCII") from None
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - FIRST
    if len(codes) and (codes.min() < 0 or codes.max() > 63 or codes[-1] & MORE):
        raise InputError("not a COCO run-length encoding: counts are damaged or cut off")
    ends = np.flatnonzero((codes & MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > LONGEST:
        raise InputError("not a COCO run-length encoding: a run is longer than any image")
    shift = (np.arange(len(codes)) - np.repeat(starts, lengths)) * BITS
    parts = (codes & (MORE - 1)) << shift
    runs = np.add.reduceat(parts, starts) if len(starts) else np.zeros(0, np.int64)
    runs -= np.where(codes[ends] & SIGN, np.int64(1) << (BITS * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])  # each adds to the one before the last
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def box_of(mask: np.ndarray) -> list[int]:
    """The bounding box `[x0, y0, x1, y1]` of a mask in pixels; zeros for an empty mask.

    The origin is the top left corner; x1 and y1 are exclusive.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1] if len(ys) else [0, 0, 0, 0]
