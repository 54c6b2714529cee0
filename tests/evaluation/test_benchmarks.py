"""Published benchmarks end to end on small data sets: both ways of answering, resuming,
predictions, broken samples.
"""

import json

import numpy as np
import pytest
from small_data import reason_seg
from small_data import refer as write_refer

from reasonseg.cli.main import main
from reasonseg.datasets import reason, refer
from reasonseg.errors import InputError
from reasonseg.evaluation.benchmarks import evaluate_benchmark, union
from reasonseg.evaluation.metrics import count
from reasonseg.structures.masks import to_rle


@pytest.fixture
def root(tmp_path):
    return str(reason_seg(tmp_path / "data"))


def test_both_ways_are_scored_apart(segmenter, root, tmp_path):
    summary = evaluate_benchmark(
        segmenter, reason.Config(root), name="reasonseg", out=tmp_path / "out", progress=False
    )
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    for part in (summary, summary["short"], summary["long"]):
        assert set(part) >= {"teacher_forced", "generated"}
        assert set(part["generated"]) >= {"giou", "ciou", "n", "ci95"}
    assert (
        summary["teacher_forced"]["n"],
        summary["short"]["generated"]["n"],
        summary["errors"],
    ) == (2, 1, 0)


def test_forced_answers_are_those_of_one_by_one(segmenter, root):
    data = reason.Config(root, sentences="all").build()
    queries = [data[i].query for i in range(len(data))]
    together = segmenter.forced(queries)
    for query, answer in zip(queries, together, strict=True):
        alone = segmenter.forced([query])[0]
        assert answer.masks.shape == (1, *query.size) and (answer.masks != alone.masks).sum() <= 4


def test_ignored_pixels_do_not_count(segmenter, root):
    data = reason.Config(root).build()
    sample = data[0]
    assert sample.ignored.any()
    target = sample.truth.masks[0].astype(np.uint8)
    target[sample.ignored] = 255
    assert count(sample.truth.masks[0] | sample.ignored, target).giou == pytest.approx(
        1.0, abs=1e-6
    )


def test_a_killed_run_goes_on_and_ends_the_same(segmenter, root, tmp_path):
    config = reason.Config(root, sentences="all")
    whole = evaluate_benchmark(
        segmenter, config, name="reasonseg", out=tmp_path / "a", progress=False
    )
    evaluate_benchmark(segmenter, config, name="reasonseg", out=tmp_path / "b", progress=False)
    rows = tmp_path / "b" / "rows.jsonl"
    rows.write_text(
        rows.read_text(encoding="utf-8")[:-200], encoding="utf-8"
    )  # the last line is cut off
    again = evaluate_benchmark(
        segmenter, config, name="reasonseg", out=tmp_path / "b", progress=False
    )
    assert again == whole
    ids = [json.loads(line)["id"] for line in rows.read_text(encoding="utf-8").splitlines()]
    assert sorted(ids) == ["val/0", "val/1", "val/1#1"]


def test_a_broken_image_is_a_row_with_its_error(segmenter, root, tmp_path):
    (tmp_path / "data" / "reason_seg" / "ReasonSeg" / "val" / "0.jpg").write_bytes(b"nothing")
    summary = evaluate_benchmark(
        segmenter, reason.Config(root), name="reasonseg", out=tmp_path / "out", progress=False
    )
    assert summary["errors"] == 1 and summary["generated"]["n"] == 1
    broken = [
        r
        for r in map(
            json.loads, (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        )
        if "error" in r
    ]
    assert [r["id"] for r in broken] == ["val/0"] and "0.jpg" in broken[0]["error"]


def test_true_masks_as_predictions(tmp_path):
    config = refer.Config(str(write_refer(tmp_path, "grefcoco", stem="grefs")), "grefcoco")
    lines = []
    for sample in config.build():
        objects = [{"segmentation": to_rle(m)} for m in sample.truth.masks]
        lines.append(
            json.dumps({"id": sample.id, "objects": objects, "status": sample.truth.status})
        )
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    summary = evaluate_benchmark(
        None, config, name="grefcoco", predictions=tmp_path / "p.jsonl", progress=False
    )
    made = summary["generated"]
    assert made["giou"] == pytest.approx(1.0, abs=1e-6) and made["n_acc"] == made["t_acc"] == 1.0
    assert "teacher_forced" not in summary


def test_absent_things_score_by_silence(tmp_path):
    """Nothing marked where nothing fits is 1, anything marked is 0 (gRefCOCO's gIoU)."""
    config = refer.Config(str(write_refer(tmp_path, "grefcoco", stem="grefs")), "grefcoco")
    lines = [json.dumps({"id": s.id, "objects": [], "status": "absent"}) for s in config.build()]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = evaluate_benchmark(
        None, config, name="g", predictions=tmp_path / "p.jsonl", progress=False
    )["generated"]
    assert made["giou"] == pytest.approx(0.25) and (made["n_acc"], made["t_acc"]) == (1.0, 0.0)


def test_union():
    masks = np.zeros((2, 3, 3), bool)
    masks[0, 0, 0] = masks[1, 2, 2] = True
    assert union(masks, (3, 3)).sum() == 2 and union(masks[:0], (3, 3)).sum() == 0


def test_the_command(root, tmp_path, capsys):
    assert (
        main(["eval", "reasonseg", "--root", root, "--out", str(tmp_path / "out"), "--limit", "1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "teacher" in said and "generated" in said
    assert main(["eval", "refcoco", "--root", root]) == 2
    assert "has no refcoco" in capsys.readouterr().err


def test_a_mended_picture_is_read_again(segmenter, root, tmp_path):
    picture = tmp_path / "data" / "reason_seg" / "ReasonSeg" / "val" / "0.jpg"
    good = picture.read_bytes()
    picture.write_bytes(b"nothing")
    config = reason.Config(root)
    assert (
        evaluate_benchmark(segmenter, config, name="r", out=tmp_path / "o", progress=False)[
            "errors"
        ]
        == 1
    )
    picture.write_bytes(good)
    again = evaluate_benchmark(segmenter, config, name="r", out=tmp_path / "o", progress=False)
    assert again["errors"] == 0 and again["generated"]["n"] == 2


def test_other_predictions_need_another_folder(tmp_path):
    config = refer.Config(str(write_refer(tmp_path)))
    lines = [json.dumps({"id": s.id, "objects": []}) for s in config.build()]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    evaluate_benchmark(
        None, config, name="r", predictions=tmp_path / "p.jsonl", out=tmp_path / "o", progress=False
    )
    (tmp_path / "p.jsonl").write_text("\n".join(reversed(lines)), encoding="utf-8")
    with pytest.raises(InputError, match="other settings"):
        evaluate_benchmark(
            None,
            config,
            name="r",
            predictions=tmp_path / "p.jsonl",
            out=tmp_path / "o",
            progress=False,
        )


def test_predictions_without_a_segmentation(tmp_path):
    config = refer.Config(str(write_refer(tmp_path)))
    (tmp_path / "p.jsonl").write_text(
        "\n".join(json.dumps({"id": s.id, "objects": [{}]}) for s in config.build()),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="needs a segmentation"):
        evaluate_benchmark(None, config, name="r", predictions=tmp_path / "p.jsonl", progress=False)
