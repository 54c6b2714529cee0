"""The element of a data set: a question and its true answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query


@dataclass
class Sample:
    """The element of a data set: a question and its true answer.

    Raises `InputError` where the masks and the image have different sizes.

    Attributes:
        query: The question.
        truth: The true answer; its masks are bool `[n, h, w]` in the size of the image.
        id: A name that is unique in the data set.
        level: The group that reports count separately, such as `long` or `short`.
        ignored: bool `[h, w]`, pixels that no score counts, or None.
    """

    query: Query
    truth: Answer
    id: str = ""
    level: str = ""
    ignored: np.ndarray | None = None

    def __post_init__(self):
        if len(self.truth.masks) and self.truth.masks.shape[1:] != self.query.size:
            raise InputError(
                f"sample {self.id!r}: the masks are {list(self.truth.masks.shape[1:])}, "
                f"the image {list(self.query.size)}; resize one"
            )
