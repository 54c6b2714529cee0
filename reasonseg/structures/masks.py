"""Pure functions on masks (bool `[h, w]`)."""

from __future__ import annotations

import numpy as np

from reasonseg.errors import InputError


def to_rle(mask: np.ndarray) -> dict:
    """COCO run-length encoding: `{"size": [h, w], "counts": str}`."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def from_rle(rle: dict) -> np.ndarray:
    """bool `[h, w]` from COCO RLE, `counts` a string or a list of run lengths. Raises
    `InputError` if malformed.
    """
    from pycocotools import mask as coco

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
    """How many pixels a COCO RLE marks, without decoding it."""
    from pycocotools import mask as coco

    return int(coco.area({**rle, "counts": rle["counts"].encode()}))


def box_of(mask: np.ndarray) -> list[int]:
    """`[x0, y0, x1, y1]` around a mask, zeros for an empty one."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1] if len(ys) else [0, 0, 0, 0]
