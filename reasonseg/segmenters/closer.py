"""Second thoughts about a box or a click alone: small decoders see more of a thing from near and in
a mirror, and a click means one thing.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from reasonseg.checkpoints.parts import Parts
from reasonseg.nn.cache import ImageCache
from reasonseg.structures.query import Box, Point, Query

MARGIN = 0.05  # of a box's sides: so far a mask may reach beyond its box
LEAST = 32  # pixels of a side of what is looked at
SURE = 10.0  # the largest logit that counts, so that neither look outvotes the other


def wants(parts: Parts, query: Query) -> bool:
    """Whether a query is one box alone, and the model looks closer (`ModelSettings.closer`)."""
    alone = len(query.boxes) == 1 and not query.points and query.previous is None
    return bool(parts.settings.closer) and alone and not query.text.strip() and not query.references


def window(box: Box, size: tuple[int, int], sides: float, least: int = LEAST) -> tuple[int, ...]:
    """The part of a picture of `size` (height, width) around a box, `sides` times its sides, in
    whole pixels `(x0, y0, x1, y1)`.
    """
    height, width = size
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across, down = (
        max(abs(b - a) * sides, least) / 2 for a, b in ((box[0], box[2]), (box[1], box[3]))
    )
    return (
        max(int(x - across), 0), max(int(y - down), 0),
        min(int(np.ceil(x + across)), width), min(int(np.ceil(y + down)), height),
    )  # fmt: skip


def looked_closer(
    parts: Parts, query: Query, logits: torch.Tensor, cache: ImageCache
) -> np.ndarray:
    """The mask bool `[h, w]` of a query that `wants` it: the mean of both looks and of their mirror
    images, within the box.

    `logits` `[1, side, side]` are those of the first look. `cache` keeps what is seen, so that a
    second box on a picture does not look into the mirror again.
    """
    box = query.boxes[0]
    x0, y0, x1, y1 = window(box, query.size, parts.settings.closer)
    inside = np.zeros(query.size, bool)
    left, top, right, bottom = window(box, query.size, 1 + 2 * MARGIN, 0)
    inside[top:bottom, left:right] = True
    whole = parts.decoder.restore(logits, query.size)[0].clamp(-SURE, SURE)
    whole = whole + _drawn(parts, cache, query.image, box, True)
    if min(x1 - x0, y1 - y0) > 1:
        cut = query.image[y0:y1, x0:x1]
        moved = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
        for mirrored in (False, True):
            whole[y0:y1, x0:x1] += _drawn(parts, cache, cut, moved, mirrored)
    return (whole > 0).cpu().numpy() & inside


def _drawn(
    parts: Parts, cache: ImageCache, image: np.ndarray, box: Box, mirrored: bool
) -> torch.Tensor:
    """Logits `[h, w]` of a box, also where the image is looked at in a mirror."""
    decoder, size = parts.decoder, (image.shape[0], image.shape[1])
    if mirrored:
        image, box = image[:, ::-1], (size[1] - box[2], box[1], size[1] - box[0], box[3])
    shown = [np.ascontiguousarray(image)]
    features = cache([decoder], shown, decoder.encode, decoder.pixels.size)
    index = torch.zeros(1, dtype=torch.long, device=parts.device)
    logits, _ = decoder.decode(features, index, decoder.places([], [box], size))
    full = decoder.restore(logits, size)[0].clamp(-SURE, SURE)
    return full.flip(1) if mirrored else full


def clicked(parts: Parts, query: Query) -> bool:
    """Whether a query is one click alone, and the model marks one piece (`ModelSettings`)."""
    alone = len(query.points) == 1 and query.points[0][2] == 1
    alone = alone and not query.boxes and query.previous is None
    worded = bool(query.text.strip() or query.references)
    return parts.settings.one_piece and alone and not worded


def piece_at(mask: np.ndarray, point: Point) -> np.ndarray:
    """The connected piece of a mask under a click; the whole mask where none is there."""
    pieces = np.asarray(ndimage.label(mask)[0])  # type: ignore[index]
    height, width = mask.shape
    x, y = min(max(int(point[0]), 0), width - 1), min(max(int(point[1]), 0), height - 1)
    return pieces == pieces[y, x] if pieces[y, x] else mask
