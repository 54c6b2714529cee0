"""`eval photos`: what it asks, what it counts, and that a killed run ends the same."""

import json

import numpy as np
import pytest
from photo_sets import make_sets
from PIL import Image

from reasonseg import Answer
from reasonseg.evaluation.photos import PLACED, WORDED, PhotoTasks, evaluate_photos
from reasonseg.segmenters.base import Capabilities


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(make_sets(tmp_path_factory.mktemp("sets"), 16))


class Oracle:
    """Knows every answer of a set of tasks; `wrong` answers nothing."""

    capabilities = Capabilities(True, True, True, True)
    fingerprint = "oracle"

    def __init__(self, root, wrong=False, limit=6):
        tasks = PhotoTasks(root, "val", limit, (*WORDED, *PLACED), 0)
        self.known, self.wrong, self.asked = {}, wrong, 0
        for task in tasks.tasks:
            query, mask, _, absent = tasks.ask(task)
            self.known[self.key(query)] = None if absent else mask

    def key(self, query):
        places = (tuple(query.boxes), tuple(query.points), query.text)
        shown = tuple(r.mask.tobytes() for r in query.references)
        return (query.image.tobytes(), places, shown)

    def batch(self, queries, **_):
        answers = []
        for query in queries:
            self.asked += 1
            mask = self.known[self.key(query)]
            none = mask is None or self.wrong
            masks = np.zeros((0, *query.size), bool) if none else mask[None]
            n = len(masks)
            answers.append(Answer("", masks, np.ones(n), [""] * n, "absent" if none else "found"))
        return answers


def test_the_truth_scores_one(root):
    found = evaluate_photos(Oracle(root), root=root, limit=6, progress=False)
    assert set(found["levels"]) == {*WORDED, *PLACED} and found["left_out"] == []
    for level, row in found["levels"].items():
        assert row.get("giou", row.get("n_acc")) > 0.999, level
        assert 0 < row["n"] <= 6
    assert found["n_acc"] == found["t_acc"] == 1.0
    assert found["levels"]["box"]["box_itself"] > 0.999  # the things are rectangles


def test_silence_scores_nothing(root):
    found = evaluate_photos(Oracle(root, wrong=True), root=root, limit=6, progress=False)
    assert found["levels"]["name"]["giou"] == 0 and found["levels"]["absent"]["n_acc"] == 1
    assert found["t_acc"] == 0


def test_a_killed_run_ends_the_same(root, tmp_path, monkeypatch):
    whole = evaluate_photos(Oracle(root), root=root, limit=4, out=tmp_path / "a", progress=False)
    lines = (tmp_path / "a" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "b").mkdir()
    for name in (p.name for p in (tmp_path / "a").iterdir() if p.name != "rows.jsonl"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    (tmp_path / "b" / "rows.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    again = evaluate_photos(Oracle(root), root=root, limit=4, out=tmp_path / "b", progress=False)
    assert json.dumps(again) == json.dumps(whole)


def test_what_a_model_cannot_be_asked_is_named(root):
    model = Oracle(root)
    model.capabilities = Capabilities(True, False, True, True)
    found = evaluate_photos(model, root=root, limit=2, progress=False)
    assert found["left_out"] == ["example"] and "example" not in found["levels"]


def test_the_command_prints_a_table(root, capsys):
    from reasonseg.cli.main import main

    assert main(["eval", "photos", "--root", root, "--limit", "2", "--model", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "eval photos" in printed and "box itself" in printed
    assert main(["eval", "photos", "--root", root, "--levels", "tall", "--model", "tiny"]) == 2
    assert main(["eval", "photos", "--root", "/nowhere", "--model", "tiny"]) == 2


def test_another_picture_is_shown_in_the_size_of_the_right_one(root):
    tasks = PhotoTasks(root, "val", 4, ("name",), 0)
    for task in tasks.tasks:
        query, *_ = tasks.ask(task)
        other = tasks.elsewhere(task, query)
        assert other.image.shape == query.image.shape and (other.image != query.image).any()
        assert other.text == query.text

    class Blind(Oracle):
        """Knows the questions by their words alone."""

        def key(self, query):
            return query.text

    found = evaluate_photos(
        Blind(root), root=root, limit=4, levels=("name",), elsewhere=True, progress=False
    )
    assert found["levels"]["name"]["n"] == 4


def test_a_sheet_shows_answers(root, tmp_path):
    evaluate_photos(Oracle(root), root=root, limit=4, sheet=5, out=tmp_path, progress=False)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels == (255, 255, 0)).all(-1).sum() > 50
