"""Reads a released `tokenizer.model` as the slow Llama tokenizer of transformers 4.31 did.

Checkpoints such as LISA were trained on its ids, and newer tokenizers give other ids around added
tokens. In 4.31, white space on both sides of an added token is removed, and each piece between two
added tokens is encoded on its own. With `legacy`, a piece after an added token begins with a word
mark. Without `legacy`, this mark is removed again, and a rest that is not in the vocabulary becomes
the unknown token.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import sentencepiece

from reasonseg.errors import InputError

MARK = "\u2581"  # SentencePiece's mark for the beginning of a word
MODEL, ADDED, SETTINGS = "tokenizer.model", "added_tokens.json", "tokenizer_config.json"


class LlamaPieces:
    """SentencePiece with added tokens; methods have the names of transformers' tokenizers."""

    bos_token, eos_token, unk_token = "<s>", "</s>", "<unk>"

    def __init__(self, model: bytes, added: dict[str, int], legacy: bool):
        self.model, self.added, self.legacy = model, dict(added), legacy
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bos_token_id, self.eos_token_id = self.pieces.bos_id(), self.pieces.eos_id()
        self.unk_token_id = self.pad_token_id = self.pieces.unk_id()  # as LISA pads

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LlamaPieces:
        """Reads `tokenizer.model` and the files beside it.

        Raises `InputError` where the file is missing or invalid, or the ids of added tokens do not
        fit.
        """
        folder = Path(folder)
        file = folder / MODEL
        if not file.is_file():
            raise InputError(f"{folder} has no {MODEL}; it comes with the released weights")
        settings, added = (_read(folder / name) for name in (SETTINGS, ADDED))
        try:
            tokenizer = cls(file.read_bytes(), {}, bool(settings.get("legacy", True)))
        except RuntimeError as error:
            raise InputError(
                f"{file} is not a SentencePiece model: {str(error).splitlines()[0][:120]}"
            ) from None
        decoder = settings.get(
            "added_tokens_decoder", {}
        )  # newer versions write added tokens there
        added = {**{entry["content"]: int(i) for i, entry in decoder.items()}, **added}
        known = len(tokenizer.pieces)
        tokenizer.added = {name: i for name, i in added.items() if i >= known}
        expected = list(range(known, known + len(tokenizer.added)))
        if sorted(tokenizer.added.values()) != expected:
            raise InputError(
                f"{folder / ADDED}: ids {sorted(tokenizer.added.values())} do not follow the "
                f"{known} of {MODEL}"
            )
        return tokenizer

    def __len__(self) -> int:
        return len(self.pieces) + len(self.added)

    @property
    def names(self) -> dict[str, int]:
        """Ids of the special and added tokens, which are never split."""
        special = {self.bos_token: self.bos_token_id, self.eos_token: self.eos_token_id}
        return {**special, self.unk_token: self.unk_token_id, **self.added}

    def get_vocab(self) -> dict[str, int]:
        """The id of every token."""
        return {**{self.pieces.id_to_piece(i): i for i in range(len(self.pieces))}, **self.added}

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of one token, or the id of the unknown token where there is none."""
        return self.names.get(token, self.pieces.piece_to_id(token))

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> int:
        """Adds tokens that are not in the vocabulary yet; returns how many were added."""
        new = [t for t in tokens if t not in self.names]
        self.added |= {token: len(self) + i for i, token in enumerate(new)}
        return len(new)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; BOS comes first where `add_special_tokens`."""
        ids = [self.bos_token_id] if add_special_tokens else []
        if not self.legacy:
            text = MARK + text.replace(MARK, " ")
        names = self.names
        parts = re.split(
            "(" + "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True)) + ")", text
        )
        for i, part in enumerate(parts):
            if part in names:
                ids.append(names[part])
                continue
            if i > 0 and parts[i - 1] in self.added:
                part = part.lstrip()
            if i + 1 < len(parts) and parts[i + 1] in self.added:
                part = part.rstrip()
            ids += self._piece(part) if part else []
        return ids

    def _piece(self, text: str) -> list[int]:
        if self.legacy:
            return self.pieces.encode(text)
        if text.startswith(MARK):
            return self.pieces.encode(text[1:])
        tokens = self.pieces.encode(text, out_type=str)
        if tokens and tokens[0].startswith(MARK) and not text.startswith(" "):
            tokens = [t for t in [tokens[0][1:]] if t] + tokens[1:]
        return [self.pieces.piece_to_id(token) for token in tokens]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; ids of an embedding's spare rows give no text."""
        names = {i: name for name, i in self.added.items()}
        special = {self.bos_token_id, self.eos_token_id, self.unk_token_id}
        text, run = [], []
        for i in [*ids, None]:
            if i is not None and i not in names:
                if i < len(self.pieces) and not (skip_special_tokens and i in special):
                    run.append(i)
                continue
            text += [self.pieces.decode(run)] if run else []
            text += [names[i]] if i in names else []
            run = []
        return " ".join(text)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that `from_pretrained` reads."""
        folder = Path(folder)
        (folder / MODEL).write_bytes(self.model)
        (folder / ADDED).write_text(json.dumps(self.added, indent=1) + "\n", encoding="utf-8")
        kept = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": self.legacy,
            "bos_token": self.bos_token,
        }
        kept |= {
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
            "pad_token": self.unk_token,
        }
        (folder / SETTINGS).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _read(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from None
