"""A question and its true answer: what data sets are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query


@dataclass
class Sample:
    """A question and its true answer; what data sets are made of. `ignored` bool `[h, w]`:
    pixels that no score counts.
    """

    query: Query
    truth: Answer
    id: str = ""
    level: str = ""  # a group that reports keep apart
    ignored: np.ndarray | None = None

    def __post_init__(self):
        if len(self.truth.masks) and self.truth.masks.shape[1:] != self.query.size:
            raise InputError(
                f"sample {self.id!r}: the masks are {list(self.truth.masks.shape[1:])}, "
                f"the image {list(self.query.size)}; resize one"
            )
