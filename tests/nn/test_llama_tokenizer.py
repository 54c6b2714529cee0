"""The slow Llama tokenizer of transformers 4.31, with both settings of `legacy`."""

import json

import pytest
from parity import oracle

from reasonseg.errors import InputError
from reasonseg.nn.llama_tokenizer import LlamaPieces


@pytest.fixture(scope="module")
def pieces():
    return LlamaPieces.from_pretrained(oracle("A_lisa", "checkpoint"))


@pytest.fixture(scope="module")
def modern(pieces):
    return LlamaPieces(pieces.model, pieces.added, legacy=False)


def test_every_case_of_the_reference(pieces):
    cases = json.loads(oracle("A_lisa", "tokenizer_cases.json").read_text(encoding="utf-8"))
    assert len(cases) > 8
    for case in cases:
        assert pieces.encode(case["text"]) == case["ids_with_bos"], case["text"]
        assert pieces.encode(case["text"], add_special_tokens=False) == case["ids_no_special"], (
            case["text"]
        )


def test_without_legacy_the_word_mark_is_cut_off(pieces, modern):
    seg, dot, mark = (pieces.convert_tokens_to_ids(t) for t in ("[SEG]", ".", "\u2581"))
    assert pieces.encode("[SEG].", False) == [seg, mark, dot]
    assert modern.encode("[SEG].", False) == [seg, dot]


def test_without_legacy_a_cut_word_may_be_unknown(pieces, modern):
    """What is left of a piece without its mark need not be in the vocabulary."""
    seg = pieces.convert_tokens_to_ids("[SEG]")
    whole = next(
        p
        for p in (pieces.pieces.id_to_piece(i) for i in range(259, len(pieces.pieces)))
        if p.startswith("\u2581")
        and len(p) > 2
        and pieces.pieces.piece_to_id(p[1:]) == pieces.unk_token_id
        and pieces.pieces.encode(p[1:], out_type=str) == [p]
    )
    assert modern.encode(f"[SEG] {whole[1:]}", False) == [seg, pieces.unk_token_id]
    assert pieces.encode(f"[SEG] {whole[1:]}", False) == [seg, pieces.pieces.piece_to_id(whole)]


@pytest.mark.parametrize("text", ["It is here", "two  spaces", "caf\u00e9 42", ""])
def test_plain_text_is_the_same_in_both(pieces, modern, text):
    assert pieces.encode(text) == modern.encode(text)


def test_decoding_gives_the_words_back(pieces):
    ids = pieces.encode("Sure, it is [SEG].", add_special_tokens=False)
    assert pieces.decode(ids).replace(" ", "") == "Sure,itis[SEG]."


def test_spare_rows_have_no_text(pieces):
    """An embedding may have more rows than the tokenizer has tokens, and an untrained model may
    name one.
    """
    assert pieces.decode([*pieces.encode("It is", False), len(pieces) + 5]) == "It is"


def test_saved_and_read_again(pieces, modern, tmp_path):
    modern.save_pretrained(tmp_path)
    again = LlamaPieces.from_pretrained(tmp_path)
    assert (again.added, again.legacy, len(again)) == (pieces.added, False, len(pieces))


def test_a_broken_model_file(tmp_path):
    with pytest.raises(InputError, match="has no tokenizer.model"):
        LlamaPieces.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        LlamaPieces.from_pretrained(tmp_path)
