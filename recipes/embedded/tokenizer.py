"""Trains a SentencePiece tokenizer (BPE, byte fallback) and saves it as transformers' Llama one."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

from reasonseg.structures.markers import REJ, SEG, add_markers


def make_tokenizer(sentences: Iterable[str], size: int, folder: str | Path) -> LlamaTokenizer:
    """Trains on `sentences` to at most `size` pieces and writes the tokenizer to `folder`.

    It also has `<image>`, `<SEG>` and `<REJ>`.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        split_by_whitespace=True,
    )
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "tokenizer.model").write_bytes(model.getvalue())
        tokenizer = LlamaTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "left"
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    add_markers(tokenizer, names=(SEG, REJ))
    tokenizer.save_pretrained(folder)
    return tokenizer
