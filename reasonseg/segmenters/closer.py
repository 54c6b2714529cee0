"""A second look at what a box holds, from near: small decoders see more of its edges there."""

from __future__ import annotations

import numpy as np
import torch

from reasonseg.checkpoints.parts import Parts
from reasonseg.structures.query import Box, Query

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


def looked_closer(parts: Parts, query: Query, logits: torch.Tensor) -> np.ndarray:
    """The mask bool `[h, w]` of a query that `wants` it: the mean of both looks, within the box.

    `logits` `[1, side, side]` are those of the first look.
    """
    decoder, box = parts.decoder, query.boxes[0]
    x0, y0, x1, y1 = window(box, query.size, parts.settings.closer)
    inside = np.zeros(query.size, bool)
    left, top, right, bottom = window(box, query.size, 1 + 2 * MARGIN, 0)
    inside[top:bottom, left:right] = True
    whole = decoder.restore(logits, query.size)[0].clamp(-SURE, SURE)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return (whole > 0).cpu().numpy() & inside
    cut = np.ascontiguousarray(query.image[y0:y1, x0:x1])
    size = (cut.shape[0], cut.shape[1])
    prompt = decoder.places([], [(box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)], size)
    index = torch.zeros(1, dtype=torch.long, device=whole.device)
    near, _ = decoder.decode(decoder.encode([cut]), index, prompt)
    whole[y0:y1, x0:x1] += decoder.restore(near, size)[0].clamp(-SURE, SURE)
    return (whole > 0).cpu().numpy() & inside
