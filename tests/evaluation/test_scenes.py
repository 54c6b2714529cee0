import json

import numpy as np
import pytest

from reasonseg import InputError
from reasonseg.datasets.scenes import SEVEN, Config
from reasonseg.evaluation.scenes import evaluate_scenes, overlaps, summarise

ARGUMENTS = {"limit": 16, "levels": (*SEVEN, "novel"), "progress": False}


def test_the_summary_has_every_key(segmenter, font, tmp_path):
    summary = evaluate_scenes(segmenter, out=tmp_path, **ARGUMENTS)
    assert set(summary) == {"levels", "overall", "baselines"}
    assert set(summary["levels"]) == {*SEVEN, "novel"}
    assert set(summary["levels"]["name"]) == {
        *("giou", "strict_giou", "ciou", "t_acc", "n", "ci95", "ciou_ci95")
    }
    assert set(summary["levels"]["absent"]) >= {"n_acc", "t_acc", "n"}
    assert set(summary["baselines"]) == {"random_object", "text_only", "true_object"}
    assert sum(row["n"] for row in summary["levels"].values()) == 16
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary


def test_refusals_are_counted_over_all_and_apart():
    counts = [{"inter": 1, "union": 1, "back_inter": 1, "back_union": 1, "ious": 1.0, "n": 1}]
    one = {"counts": counts, "objects": [{}], "random_object": 0.0}
    rows = [
        {"level": "absent", "status": "absent", "counts": []},
        {"level": "absent", "status": "found", "counts": []},
    ]
    rows += [{"level": "name", "status": said, **one} for said in ("found", "found")]
    rows += [{"level": "novel", "status": said, **one} for said in ("absent", "found")]
    levels = summarise(rows, ("name", "absent", "novel"), with_model=False)["levels"]
    assert (levels["absent"]["n_acc"], levels["absent"]["t_acc"]) == (0.5, 0.75)
    assert (levels["name"]["t_acc"], levels["novel"]["t_acc"]) == (1.0, 0.5)


def test_masks_beyond_those_asked_for_are_wrong_where_scores_are_strict():
    right = {"inter": 1, "union": 1, "back_inter": 1, "back_union": 1, "ious": 1.0, "n": 1}
    wrong = right | {"inter": 0, "ious": 0.0}
    answers = [([right, right], 3), ([right, wrong], 1), ([right, wrong], 2), ([wrong], 0)]
    rows = [
        {
            "level": "multi",
            "status": "found",
            "counts": counts,
            "objects": [{}] * said,
            "random_object": 0.0,
        }
        for counts, said in answers
    ]
    scores = summarise(rows, ("multi",), with_model=False)["levels"]["multi"]
    assert scores["giou"] == pytest.approx(2 / 4) and scores["strict_giou"] == pytest.approx(
        (2 / 3 + 1 / 2 + 1 / 2) / 4
    )


def test_a_resumed_run_ends_as_an_uninterrupted_one(segmenter, font, tmp_path):
    whole = evaluate_scenes(segmenter, out=tmp_path / "a", **ARGUMENTS)
    evaluate_scenes(segmenter, out=tmp_path / "b", **ARGUMENTS)
    rows = (tmp_path / "b" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    # killed in the middle of a line
    (tmp_path / "b" / "rows.jsonl").write_text(
        "\n".join(rows[:5]) + "\n" + rows[5][:40], encoding="utf-8"
    )
    (tmp_path / "b" / "summary.json").unlink()
    resumed = evaluate_scenes(segmenter, out=tmp_path / "b", **ARGUMENTS)
    assert resumed == whole
    ids = [
        json.loads(line)["id"]
        for line in (tmp_path / "b" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(ids) == len(set(ids)) == 16
    with pytest.raises(InputError, match="other settings"):
        evaluate_scenes(segmenter, out=tmp_path / "b", **{**ARGUMENTS, "limit": 8})


def test_true_masks_as_predictions_score_one(font, tmp_path):
    from reasonseg.structures.masks import to_rle

    data = Config("test", 16, levels=(*SEVEN, "novel")).build()
    lines = []
    for i in range(16):
        sample = data[i]
        objects = [{"segmentation": to_rle(mask)} for mask in sample.truth.masks]
        lines.append(
            json.dumps({"id": sample.id, "objects": objects, "status": sample.truth.status})
        )
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    summary = evaluate_scenes(None, predictions=tmp_path / "p.jsonl", **ARGUMENTS)
    assert summary["overall"]["giou"] == pytest.approx(1, abs=1e-4)
    assert summary["levels"]["absent"]["n_acc"] == summary["levels"]["absent"]["t_acc"] == 1.0
    (tmp_path / "p.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    with pytest.raises(InputError, match="no line with id"):
        evaluate_scenes(None, predictions=tmp_path / "p.jsonl", **ARGUMENTS)
    (tmp_path / "p.jsonl").write_text("{nonsense", encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        evaluate_scenes(None, predictions=tmp_path / "p.jsonl", **ARGUMENTS)


def test_targets_are_compared_in_order_and_a_missing_one_counts_nothing():
    truths = np.zeros((2, 4, 4), bool)
    truths[0, :2], truths[1, 2:] = True, True
    assert [c.giou for c in overlaps(truths, truths)] == pytest.approx([1, 1], abs=1e-4)
    assert [c.giou for c in overlaps(truths[::-1], truths)] == [0, 0]
    assert [c.giou for c in overlaps(truths[:1], truths)] == pytest.approx([1, 0], abs=1e-4)


def test_a_pack_of_ones_own_is_asked_what_it_can_be(segmenter, tmp_path):
    from PIL import Image

    index = []
    for i, name in enumerate(("gizmo", "widget", "doodad")):
        picture = np.zeros((50, 50, 4), np.uint8)
        picture[5:45, 5:45] = [(200, 30, 30, 255), (30, 200, 30, 255), (60, 60, 60, 255)][i]
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        index.append({"file": f"{name}.png", "name": name, "category": "gadget"})
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.warns(UserWarning, match="no questions of .*function"):
        summary = evaluate_scenes(segmenter, limit=6, sprites=str(tmp_path), progress=False)
    assert "name" in summary["levels"] and "function" not in summary["levels"]
