"""The RefCOCO family against what the reference loader returns (../shared/oracle/E_data), and
bad files.
"""

import json
import pickle

import numpy as np
import pytest
from parity import oracle
from small_data import refer

from reasonseg.datasets.refer import Config
from reasonseg.errors import InputError
from reasonseg.structures.polygons import coco_mask

SPECS = [
    "refcoco|unc|val",
    "refcoco|unc|testA",
    "refcoco|unc|testB",
    "refcoco+|unc|val",
    "refcocog|umd|val",
    "refcocog|umd|test",
]
SPECS += ["refcoco|unc|train"]


@pytest.mark.parametrize("spec", SPECS)
def test_validation_items(results, masks, spec):
    name, by, split = spec.split("|")
    data = Config(str(oracle("E_data", "dataset")), name, split, by).build()
    found = {}
    for sample in data:
        found.setdefault(id(sample.query.image), []).append(sample)
    expected = {}
    for item in results["ValDataset"][spec]["items"]:
        questions = [c.split("<image>\n")[1].split(" ASSISTANT:")[0] for c in item["conversations"]]
        expected[tuple(questions)] = masks[item["masks"]]
    ours = {tuple(s.query.text for s in group): group for group in found.values()}
    assert set(ours) == set(expected)
    for questions, group in ours.items():
        for sample, mask in zip(group, expected[questions], strict=True):
            # the reference adds overlaps up to 2
            assert np.array_equal(sample.truth.masks[0], mask > 0), sample.id


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_splits(results, name):
    by = "umd" if name == "refcocog" else "unc"
    for split in ("train", "val", "test", "testA", "testB"):
        expected = results["refer_api"][name].get(split, {}).get("ref_ids", [])
        try:
            data = Config(str(oracle("E_data", "dataset")), name, split, by).build()
            found = {ref["ref_id"] for ref, _ in data.entries}
        except InputError:
            found = set()
        assert found == set(expected), split


def test_grefcoco(tmp_path):
    root = refer(tmp_path, "grefcoco", stem="grefs")
    one, two, absent = (
        s
        for s in Config(str(root), "grefcoco").build()
        if s.id.split("-")[1] != "1" or s.id.endswith("0")
    )
    by_id = {s.id: s for s in (one, two, absent)}
    both = by_id["grefcoco-2-200"].truth.masks
    assert both.shape == (1, 40, 56) and both[0, 10, 15] and both[0, 10, 35] and not both[0, 10, 26]
    nothing = by_id["grefcoco-3-300"].truth
    assert nothing.status == "absent" and len(nothing.masks) == 0


def test_a_file_that_wants_to_run_code(tmp_path, monkeypatch):
    root = refer(tmp_path)
    monkeypatch.chdir(tmp_path)

    class Bomb:
        def __reduce__(self):
            return (exec, ("open('boom', 'w')",))

    file = root / "refer_seg" / "refcoco" / "refs(unc).p"
    file.write_bytes(pickle.dumps([Bomb()]))
    with pytest.raises(InputError, match="more than plain data") as error:
        Config(str(root)).build()
    assert str(file) in str(error.value) and not (tmp_path / "boom").exists()


def test_ids_that_point_nowhere(tmp_path):
    root = refer(tmp_path)
    file = root / "refer_seg" / "refcoco" / "instances.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    tree["annotations"] = [a for a in tree["annotations"] if a["id"] != 70]
    file.write_text(json.dumps(tree), encoding="utf-8")
    data = Config(str(root)).build()
    broken = next(i for i in range(len(data)) if data.id(i).startswith("refcoco-1-"))
    with pytest.raises(InputError, match="no annotation 70, which ref 1 names"):
        _ = data[broken]


@pytest.mark.parametrize(
    "change, words",
    [
        ("refs", "no refs"),
        ("split", "there are val"),
        ("picture", "train2014"),
        ("folder", "has no refcocog"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, words):
    root = refer(tmp_path)
    fields = (
        {"split": "exam"}
        if change == "split"
        else {"name": "refcocog"}
        if change == "folder"
        else {}
    )
    if change == "refs":
        (root / "refer_seg" / "refcoco" / "refs(unc).p").unlink()
    if change == "picture":
        for picture in (root / "refer_seg" / "images").rglob("*.jpg"):
            picture.unlink()
    with pytest.raises(InputError, match=words):
        _ = Config(str(root), **fields).build()[0]


@pytest.mark.parametrize(
    "segmentation, words",
    [
        ([[1, 2, 3, 4]], "three points"),
        ([{"size": [4, 4], "counts": "x"}], "annotation"),
        ("text", "annotation"),
    ],
)
def test_bad_segmentations_are_named(segmentation, words):
    with pytest.raises(InputError, match=words):
        coco_mask(segmentation, (8, 8), "annotation 5")


def test_overlapping_parts_are_one_thing():
    square = [1.0, 1, 6, 1, 6, 6, 1, 6]
    assert np.array_equal(coco_mask([square, square], (8, 8), ""), coco_mask([square], (8, 8), ""))
    assert not coco_mask([], (8, 8), "").any()
