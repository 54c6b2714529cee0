"""`data check`: counts, what is broken, what two splits share."""

import shutil

from small_data import pairs, reason_seg, refer

from reasonseg.cli.main import main
from reasonseg.datasets import folder, reason
from reasonseg.evaluation.dataset_report import inspect


def test_what_is_there_and_what_is_not(tmp_path, capsys):
    root = str(reason_seg(tmp_path))
    assert main(["data", "check", "reasonseg", "--root", root, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "val: 3 samples on 2 pictures" in said and "train: not there" in said
    assert (tmp_path / "out" / "val" / "sheet.png").is_file()


def test_broken_samples_are_named(tmp_path, capsys):
    root = reason_seg(tmp_path)
    (root / "reason_seg" / "ReasonSeg" / "val" / "1.jpg").write_bytes(b"x")
    assert (
        main(["data", "check", "reasonseg", "--root", str(root), "--out", str(tmp_path / "out")])
        == 1
    )
    said = capsys.readouterr().out
    assert said.count("broken: val") == 2 and "1.jpg" in said


def test_pictures_that_two_splits_share(tmp_path):
    root = reason_seg(tmp_path)
    splits = root / "reason_seg" / "ReasonSeg"
    shutil.copytree(splits / "val", splits / "train")
    (splits / "train" / "0.json").unlink()
    found = inspect(
        {s: reason.Config(str(root), s) for s in ("train", "val")}, tmp_path / "out", progress=False
    )
    assert found.shared == {("train", "val"): 1} and "share 1 pictures" in found.lines()[-1]


def test_the_parts_of_a_folder_share_nothing(tmp_path):
    root = str(pairs(tmp_path / "d", 6))
    found = inspect(
        {s: folder.Config(root, s) for s in ("train", "validation")},
        tmp_path / "out",
        progress=False,
    )
    assert not found.shared and not found.problems
    assert found.counts["train"][:2] == (10, 5)


def test_nothing_there(tmp_path, capsys):
    assert (
        main(["data", "check", "refcoco", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
        == 2
    )
    assert "has no refcoco" in capsys.readouterr().err
    assert (
        main(
            [
                "data",
                "check",
                "refcoco",
                "--root",
                str(refer(tmp_path)),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )


def test_a_folder_is_scored(segmenter, tmp_path, capsys):
    root = str(pairs(tmp_path / "d", 2))
    assert main(["eval", "folder", "--root", root, "--limit", "2"]) == 0
    assert "eval folder" in capsys.readouterr().out
