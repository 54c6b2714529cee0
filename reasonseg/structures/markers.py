"""The marker tokens `<SEG>` ("a mask here") and `<REJ>` ("not in this image"): their names, ids
and fixed answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonseg.errors import InputError

if TYPE_CHECKING:
    from torch import nn

SEG, REJ = "<SEG>", "<REJ>"
# LISA's and GSVA's spellings are read as they are
SEG_NAMES, REJ_NAMES = (
    (SEG, "[SEG]"),
    (REJ, "[REJ]"),
)
FORCED = "<SEG>."  # the answer that teacher forcing gives where a data set has no words of its own
REFUSED = "<REJ>."  # the true answer where nothing fits


@dataclass(frozen=True)
class Markers:
    """Ids of `<SEG>` and `<REJ>` in a tokenizer; `rej` is None where the model was never taught
    to refuse.
    """

    seg: int
    rej: int | None
    seg_text: str
    rej_text: str

    @property
    def ids(self) -> list[int]:
        """Of those there are."""
        return [self.seg] if self.rej is None else [self.seg, self.rej]

    @classmethod
    def find(cls, tokenizer: Any) -> Markers:
        """Reads the ids from the vocabulary. Raises `InputError` where `<SEG>` is not a single
        token.
        """
        vocabulary = tokenizer.get_vocab()
        seg = next((name for name in SEG_NAMES if name in vocabulary), None)
        if seg is None:
            raise InputError(
                "the tokenizer has no <SEG>; add it with "
                "reasonseg.structures.markers.add_markers(tokenizer)"
            )
        ids = tokenizer.encode(seg, add_special_tokens=False)
        if vocabulary[seg] not in ids or len([i for i in ids if i != vocabulary[seg]]) > 1:
            raise InputError(
                f"the tokenizer cuts {seg} into {ids}; it must be one token ({vocabulary[seg]})"
            )
        rej = next((name for name in REJ_NAMES if name in vocabulary), None)
        return cls(vocabulary[seg], vocabulary[rej] if rej else None, seg, rej or REJ)


def add_markers(
    tokenizer: Any, model: nn.Module | None = None, names: tuple[str, ...] = (SEG, REJ)
) -> Markers:
    """Adds the markers to any tokenizer (those it lacks) and grows the model's embeddings;
    returns their ids.
    """
    tokenizer.add_tokens(
        [name for name in names if name not in tokenizer.get_vocab()], special_tokens=False
    )
    if model is not None and model.get_input_embeddings().num_embeddings < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    return Markers.find(tokenizer)


def reset_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer without the padding and truncation it was last called with, which a saved
    one would keep.
    """
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        fast.no_truncation()
        fast.no_padding()
    return tokenizer


def pieces(text: str, names: tuple[str, ...]) -> list[str]:
    """`text` cut at the names, which stay as pieces of their own; white space around them goes."""
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return [p for p in (part.strip() for part in parts) if p]


def joined(parts: list[str]) -> str:
    """Pieces as a sentence: a space between them, none before punctuation."""
    text = ""
    for part in parts:
        text += part if not text or part[0] in ".,:;!?" else " " + part
    return text
