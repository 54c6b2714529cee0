"""Predictions of other tools, in each form."""

import json

import pytest

from reasonseg import InputError
from reasonseg.datasets.folder import Config
from reasonseg.evaluation.benchmarks import evaluate_benchmark
from reasonseg.structures.masks import to_rle
from scripts.fuzz_folders import FLAT, MASK, coco, pairs


@pytest.fixture
def folder(tmp_path):
    coco(tmp_path / "data")
    return Config(str(tmp_path / "data"))


def scored(config, file):
    return evaluate_benchmark(None, config, name="folder", predictions=file, progress=False)


def write(tmp_path, tree):
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return file


def test_coco_results(folder, tmp_path):
    results = [
        {"image_id": 0, "category_id": 0, "segmentation": to_rle(MASK), "score": 0.9},
        {"image_id": "1", "category_id": 1, "segmentation": [FLAT], "score": 0.9},
        {"image_id": 0, "category_id": 99, "segmentation": [FLAT]},
    ]
    summary = scored(folder, write(tmp_path, results))
    assert summary["generated"]["n"] == 3  # the third sample has no result, so no mask
    assert summary["generated"]["giou"] == pytest.approx(2 / 3, abs=1e-3)


def test_a_coco_data_set_for_another_layout(tmp_path):
    pairs(tmp_path / "data")
    tree = {
        "images": [{"id": 7, "file_name": "x/a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "segmentation": to_rle(MASK)},
            {"image_id": 8, "category_id": 2, "segmentation": to_rle(MASK)},
        ],
    }
    summary = scored(Config(str(tmp_path / "data")), write(tmp_path, tree))
    assert summary["generated"]["giou"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "tree, words",
    [
        ([{"image_id": 0}], "has no segmentation"),
        ([{"image_id": 99, "category_id": 0, "segmentation": [FLAT]}], "none of its 1 results"),
        ([{"image_id": 0, "category_id": 0, "segmentation": {"size": [1, 1]}}], "masks must be"),
        (
            [{"image_id": 0, "category_id": 0, "segmentation": {"size": [48, 64], "counts": [5]}}],
            "add up to 5 of 3072",
        ),
        ({"images": [{}], "annotations": []}, "is no COCO data set"),
        ({"id": "a.jpg: the thing 0", "objects": 3}, "every object needs"),
        ({"id": "a.jpg: the thing 0", "objects": None, "status": "absent"}, "have no line with id"),
    ],
)
def test_malformed_predictions(folder, tmp_path, tree, words):
    with pytest.raises(InputError, match=words):
        scored(folder, write(tmp_path, tree))


def test_results_need_ids(tmp_path):
    pairs(tmp_path / "data")
    with pytest.raises(InputError, match="only a folder in the layout of COCO"):
        scored(Config(str(tmp_path / "data")), write(tmp_path, []))


def test_absent_rows_give_n_acc_and_t_acc(tmp_path):
    from scripts.fuzz_folders import samples

    samples(tmp_path)
    data = Config(str(tmp_path)).build()
    rows = [
        {"id": data.id(i), "objects": [{"segmentation": to_rle(MASK)}] if i < 2 else []}
        for i in range(4)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = scored(Config(str(tmp_path)), tmp_path / "p.jsonl")["generated"]
    assert found["n_acc"] == 1.0 and found["t_acc"] == pytest.approx(2 / 3)
    assert found["n_acc_ci95"][0] < 1 and found["t_acc_ci95"][0] < 2 / 3 < found["t_acc_ci95"][1]
