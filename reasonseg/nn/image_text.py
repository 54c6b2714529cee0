"""Token ids of texts with image placeholders, split as in LLaVA's and LISA's code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reasonseg.nn.llama_tokenizer import LlamaPieces
from reasonseg.structures.conversations import IMAGE, REGION
from reasonseg.structures.markers import Markers, pieces


class ImageText:
    """Texts to token ids; `<image>` becomes `patches` image tokens, `<region>` becomes one.

    Every piece of text between special names is encoded on its own. Released tokenizers know their
    own special names and split a text as the released code does.
    """

    def __init__(self, tokenizer: Any, markers: Markers, image_id: int, patches: int):
        self.tokenizer, self.image_id, self.patches = tokenizer, image_id, patches
        vocabulary = tokenizer.get_vocab()
        self.wrapped = "<im_start>" in vocabulary
        known = (
            IMAGE,
            REGION,
            "<im_start>",
            "<im_end>",
            markers.seg_text,
            markers.rej_text,
            "<s>",
            "</s>",
            "<|im_start|>",
            "<|im_end|>",
        )
        self.names = {name: vocabulary[name] for name in known if name in vocabulary}
        self.names[REGION] = image_id

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without BOS."""
        if isinstance(self.tokenizer, LlamaPieces):
            return self._released(text)
        ids = []
        for piece in pieces(text, tuple(self.names)):
            if piece == IMAGE:
                run = [self.image_id] * self.patches
                ids += (
                    [self.names["<im_start>"], *run, self.names["<im_end>"]]
                    if self.wrapped
                    else run
                )
            elif piece in self.names:
                ids.append(self.names[piece])
            else:
                ids += self.tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _released(self, text: str) -> list[int]:
        runs = {IMAGE: [self.image_id] * self.patches, REGION: [self.image_id]}
        text = text.replace(IMAGE, f"<im_start>{IMAGE}<im_end>") if self.wrapped else text
        parts = re.split(f"({IMAGE}|{REGION})", text)
        ids = self.tokenizer.encode(parts[0], add_special_tokens=False)
        for name, part in zip(parts[1::2], parts[2::2], strict=True):
            ids += runs[name] + self.tokenizer.encode(part, add_special_tokens=False)
        return ids


def without(text: str, names: Sequence[str]) -> str:
    """A text without the given names, such as markers and image placeholders.

    So a user's text cannot contain what the model takes for its own tokens.
    """
    if not any(name in text for name in names):
        return text
    return " ".join(piece for piece in pieces(text, tuple(names)) if piece not in names)
