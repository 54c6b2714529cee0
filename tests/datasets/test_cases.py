"""Files as people have them, with the value that each should give."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reasonseg.cli.main import main
from reasonseg.datasets.folder import Config, check
from reasonseg.errors import InputError
from reasonseg.structures.export import export, records
from reasonseg.structures.images import read_image
from reasonseg.structures.masks import from_rle

CASES = Path(__file__).parents[3] / "shared" / "cases"
needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"{CASES} is not here: THE CASES OF OTHERS' FILES ARE NOT TESTED"
)
pytestmark = needs_cases

CAT = {"a.jpg: the cat": 400, "b.jpg: the cat": 400}
THING = {"images/a.jpg: the thing": 400, "images/b.jpg: the thing": 400}
# the pixels of each sample by its id
RIGHT = {
    "03-mask-01-void255": {"images/a.jpg: the class 1": 400, "images/b.jpg: the class 1": 400},
    "04-mask-16bit-ids": {
        f"images/{name}.jpg: the class {k}": 100 for name in "ab" for k in (1, 2, 3)
    },
    "07-labelme-gbk-merge": {"a.jpg: the 划痕": 441, "a.jpg: the 裂纹": 231},
    "09-labelme-imagepath": {"imgs/a.jpg: the cat": 441, "imgs/b.jpg: the cat": 441},
    "10-labelme-int-label": {"a.jpg: the 3": 441},
    "11-labelme-appledouble": {"a.jpg: the cat": 441},
    "13-labelme-othersize": {"a.jpg: the cat": 231},
    "15-coco-other-size": CAT,
    "16-coco-official-layout": {
        "train2017/train2017.jpg: the cat": 400,
        "val2017/val2017.jpg: the cat": 400,
    },
    "18-coco-roboflow-root": {"train/a.jpg: the cat": 400, "valid/a.jpg: the cat": 400},
    "20-coco-keypoints-beside": {"a.jpg: the person": 400, "b.jpg: the person": 400},
    "21-coco-mixed-ids": CAT,
    "23-coco-bom": CAT,
    "24-coco-speck": CAT,
    "27-pairs-uppercase-PNG": THING,
    "29-pairs-labels-json": {
        f"images/{name}.jpg: the {label}": count
        for name in "ab"
        for label, count in (("cat", 400), ("dog", 25))
    },
    "30-pairs-appledouble": THING,
    "33-jsonl-masks-string": {"a.jpg: the cat": 400},
}
REFUSED = {
    "01-rle-short-counts": ["add up to 150 of 3072", "add up to 5000103 of 3072"],
    "02-nan-polygon-segfault": ["coordinate nan is not finite", "'10' is not a number"],
    "25-coco-bbox-only": ["annotation 1 has only a box", "annotation 2 has only a box"],
}


def folder(name):
    return Config(str(CASES / name / "input")).build()


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_masks_are_read(name):
    data = folder(name)
    assert not check(data)
    assert {s.id: int(s.truth.masks.sum()) for s in data} == RIGHT[name]


def test_void_pixels_are_not_counted():
    data = folder("03-mask-01-void255")
    assert [int(s.ignored.sum()) for s in data] == [512, 0]
    assert any("255 void, not counted (512 px" in remark.text for remark in data.remarks)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_named(name):
    problems = [what for _, what in check(folder(name))]
    assert len(problems) == len(REFUSED[name])
    assert all(words in what for words, what in zip(REFUSED[name], problems, strict=True))


@pytest.mark.parametrize(
    "name, words, lost",
    [
        ("07-labelme-gbk-merge", "it is read as GBK", False),
        ("13-labelme-othersize", "scaled by 0.5", False),
        ("15-coco-other-size", "scaled by 0.5", False),
        ("20-coco-keypoints-beside", "2 masks are left out", False),
        ("24-coco-speck", "fewer than three points are left out", False),
    ],
)
def test_what_was_understood_is_said(name, words, lost, tmp_path, capsys):
    root = str(CASES / name / "input")
    code = main(["data", "check", "folder", "--root", root, "--out", str(tmp_path)])
    assert words in capsys.readouterr().out and code == int(lost)


def test_official_splits_are_used():
    root = str(CASES / "18-coco-roboflow-root" / "input")
    for split, name in (("train", "train/a.jpg"), ("validation", "valid/a.jpg")):
        data = Config(root, split).build()
        assert [data.id(i) for i in range(len(data))] == [f"{name}: the cat"]


@pytest.mark.parametrize("name", ["float.tif", "twelve-bit.tif"])
def test_other_depths_are_scaled_and_said(name):
    said = []
    image = read_image(CASES / "34-float-tiff-black" / "input" / name, remark=said.append)
    assert image.min() == 0 and image.max() == 255 and abs(image.mean() - 127.5) < 1
    assert len(said) == 1 and "scaled" in said[0]


@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo", "png", "labelstudio"])
def test_holes_lines_and_dots_survive_an_export(kind, tmp_path):
    from PIL import Image

    source = CASES / "37-export-holes" / "input"
    (record,) = records(source)
    at = {"yolo": tmp_path / "out" / "images"}.get(kind, tmp_path / "out")
    at.mkdir(parents=True)
    Image.new("RGB", record.size[::-1]).save(at / Path(record.image).name)
    written = export([record], tmp_path / "out", kind)
    assert written.masks == len(record.objects)
    data = Config(str(tmp_path / "out")).build()
    assert not check(data)
    found = {s.truth.labels[0]: s.truth.masks[0] for s in data}
    for o in record.objects:
        assert np.array_equal(found[o["label"]], from_rle(o["segmentation"])), o["label"]


def test_a_destination_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    source = str(CASES / "38-export-dst-is-file" / "input")
    assert main(["export", source, str(tmp_path / "out"), "--format", "coco"]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_finetune_claims_nothing_before_the_folder_is_checked(tmp_path, capsys):
    root = str(CASES / "39-finetune-claims-too-early" / "input")
    assert main(["finetune", root, "--out", str(tmp_path / "out")]) == 2
    assert "no image is left for validation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_locale(tmp_path):
    """Everything is UTF-8, whatever the locale of the system."""
    call = [sys.executable, "-X", "utf8=0", "-m", "reasonseg.cli", "export"]
    source = str(CASES / "46-locale" / "input")
    for kind in ("coco", "labelme", "yolo", "labelstudio"):
        done = subprocess.run(
            [*call, source, str(tmp_path / kind), "--format", kind],
            env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin:/bin"},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
    tree = json.loads((tmp_path / "coco" / "annotations.json").read_text(encoding="utf-8"))
    assert tree["categories"][0]["name"] == "猫"


def test_an_empty_folder_says_what_it_left_out(tmp_path):
    (tmp_path / "broken.json").write_bytes(b"{")
    with pytest.raises(InputError, match="broken.json is not valid JSON"):
        Config(str(tmp_path)).build()
