"""The marker tokens `<SEG>` (a mask) and `<REJ>` (not in this image).

Holds their names, their ids and the fixed answers that use them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonseg.errors import InputError

if TYPE_CHECKING:
    from torch import nn

SEG, REJ = "<SEG>", "<REJ>"
# LISA's and GSVA's spellings are read too
SEG_NAMES, REJ_NAMES = (
    (SEG, "[SEG]"),
    (REJ, "[REJ]"),
)
FORCED = "<SEG>."  # the teacher-forced answer where a data set has no answer text
REFUSED = "<REJ>."  # the true answer where nothing in the image matches


@dataclass(frozen=True)
class Markers:
    """Token ids and spellings of `<SEG>` and `<REJ>` in a tokenizer.

    `rej` is None where the model was not trained with `<REJ>`.
    """

    seg: int
    rej: int | None
    seg_text: str
    rej_text: str

    @property
    def ids(self) -> list[int]:
        """The ids of the markers that the tokenizer has."""
        return [self.seg] if self.rej is None else [self.seg, self.rej]

    @classmethod
    def find(cls, tokenizer: Any) -> Markers:
        """The markers of a tokenizer, read from its vocabulary.

        Raises `InputError` where `<SEG>` is missing or is not a single token.
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
                f"the tokenizer splits {seg} into {ids}; it must be one token ({vocabulary[seg]})"
            )
        rej = next((name for name in REJ_NAMES if name in vocabulary), None)
        return cls(vocabulary[seg], vocabulary[rej] if rej else None, seg, rej or REJ)


def add_markers(
    tokenizer: Any, model: nn.Module | None = None, names: tuple[str, ...] = (SEG, REJ)
) -> Markers:
    """Adds the missing markers to a tokenizer and returns the ids of all markers.

    With a `model`, its token embeddings are resized to the new vocabulary. Raises `InputError`
    where `<SEG>` is not a single token afterwards.
    """
    tokenizer.add_tokens(
        [name for name in names if name not in tokenizer.get_vocab()], special_tokens=False
    )
    network: Any = model  # a transformers model, whose methods nn.Module does not have
    if network is not None and network.get_input_embeddings().num_embeddings < len(tokenizer):
        network.resize_token_embeddings(len(tokenizer))
    return Markers.find(tokenizer)


def reset_tokenizer(tokenizer: Any) -> Any:
    """The same tokenizer without the padding and truncation of its last call.

    A saved tokenizer would otherwise keep these settings.
    """
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        fast.no_truncation()
        fast.no_padding()
    return tokenizer


def pieces(text: str, names: tuple[str, ...]) -> list[str]:
    """`text` split at the names, which stay as separate pieces; outer white space is removed."""
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return [p for p in (part.strip() for part in parts) if p]


def joined(parts: list[str]) -> str:
    """The pieces joined to a sentence: a space between them, none before punctuation."""
    text = ""
    for part in parts:
        text += part if not text or part[0] in ".,:;!?" else " " + part
    return text
