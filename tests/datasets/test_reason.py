"""ReasonSeg against what the reference loader returns (../shared/oracle/E_data), and bad files."""

import hashlib

import numpy as np
import pytest
from parity import oracle
from small_data import reason_seg

from reasonseg.datasets.reason import Config, read_annotation, read_pair
from reasonseg.errors import InputError


def test_every_annotation(results, masks):
    cases = results["get_mask_from_json"]
    assert len(cases) >= 5
    for case in cases:
        image, values, texts, is_sentence = read_pair(oracle("E_data", case["json"]))
        assert texts == case["comments"] and is_sentence == case["is_sentence"]
        assert np.array_equal(values, masks[case["mask"]]), case["json"]
        found = {str(v): int((values == v).sum()) for v in np.unique(values)}
        assert found == case["counts"]
        assert hashlib.sha1(image.tobytes()).hexdigest() == case["rgb_sha1"]


@pytest.mark.parametrize("split", ["val", "train"])
def test_validation_items(results, masks, split):
    case = results["ValDataset"][f"ReasonSeg|{split}"]
    data = Config(str(oracle("E_data", "dataset")), split).build()
    assert len(data) == case["n"]
    for i, item in enumerate(case["items"]):
        sample = data[i]
        question = item["conversations"][0].split("<image>\n")[1].split(" ASSISTANT:")[0]
        assert sample.query.text == question
        expected = masks[item["masks"]][0]
        assert np.array_equal(sample.truth.masks[0], expected == 1)
        assert np.array_equal(sample.ignored, expected == 255)


def test_all_sentences_or_the_first(tmp_path):
    root = str(reason_seg(tmp_path))
    first, every = Config(root).build(), Config(root, sentences="all").build()
    assert [first.id(i) for i in range(len(first))] == ["val/0", "val/1"]
    assert [every.id(i) for i in range(len(every))] == ["val/0", "val/1", "val/1#1"]
    assert [s.level for s in first] == ["short", "long"]
    assert every[1].query.image is every[2].query.image


def test_windows_letters_are_read(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes('{"text": ["the caf\u00e9"], "shapes": []}'.encode("cp1252"))
    assert read_annotation(file)["text"] == ["the caf\u00e9"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not valid JSON"),
        ('{"text": ["a"]}', "expected text"),
        ('{"text": ["a"], "shapes": [{"label": "x"}]}', "shape 0"),
        ('{"text": ["a"], "shapes": [{"label": "x", "points": []}]}', "finite"),
        ('{"text": ["a"], "shapes": [{"label": "x", "points": [[1, null]]}]}', "shape 0"),
    ],
)
def test_bad_annotations_are_named(tmp_path, content, words):
    root = reason_seg(tmp_path)
    file = root / "reason_seg" / "ReasonSeg" / "val" / "0.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words) as error:
        read_pair(file)
    assert str(file) in str(error.value)


def test_a_missing_picture_and_a_missing_split(tmp_path):
    root = reason_seg(tmp_path)
    (root / "reason_seg" / "ReasonSeg" / "val" / "0.jpg").unlink()
    with pytest.raises(InputError, match="no picture"):
        _ = Config(str(root)).build()[0]
    with pytest.raises(InputError, match="no ReasonSeg split 'exam'"):
        Config(str(root), "exam").build()
