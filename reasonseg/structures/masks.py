"""Functions on masks (bool `[h, w]`) and their COCO run-length encodings (RLE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from reasonseg.errors import InputError


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

    `counts` is a string or a list of run lengths. Raises `InputError` where it is malformed.
    """
    coco = coco_tools()
    try:
        (height, width), counts = rle["size"], rle["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width:
                raise ValueError(f"runs add up to {sum(counts)}, not {height * width}")
            rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            rle = {
                "size": [height, width],
                "counts": counts.encode() if isinstance(counts, str) else counts,
            }
        return coco.decode(rle).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a COCO run-length encoding: {error}") from None


def area_of(rle: dict) -> int:
    """Number of pixels of a COCO RLE, without decoding it."""
    return int(coco_tools().area({**rle, "counts": rle["counts"].encode()}))


def box_of(mask: np.ndarray) -> list[int]:
    """The bounding box `[x0, y0, x1, y1]` of a mask in pixels; zeros for an empty mask.

    The origin is the top left corner; x1 and y1 are exclusive.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1] if len(ys) else [0, 0, 0, 0]
