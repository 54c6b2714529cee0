"""Scores while a model learns: the best checkpoint is what a stage ends with, killed or not."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_data import config, pairs

from reasonseg import InputError
from reasonseg.config.training import read_run
from reasonseg.training.run import train
from reasonseg.training.validation import BEST, LOG, found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(pairs(tmp_path_factory.mktemp("own") / "shapes", 6))


def settings(folder, root, *more):
    """Three checkpoints at a rate that ruins the model, so that the last is not the best."""
    file = config(folder, root, steps=3, lr=3e-2)
    given = [
        "validation.kind=folder",
        f"validation.root={root}",
        "validation.split=validation",
        "validation.share=0.3",
    ]
    return read_run(file, [*given, "metric=teacher_forced.giou", "save_every=1", *more])


def test_the_best_checkpoint_is_kept(root, tmp_path):
    run = settings(tmp_path / "a", root)
    train(run)
    folder = tmp_path / "a" / "out" / "words"
    lines = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all(
        line["value"] == line["teacher_forced"]["giou"] for line in lines
    )
    assert lines[-1]["value"] < max(line["value"] for line in lines), (
        "this run was to get worse at its end"
    )
    best, ended = load_file(folder / BEST), load_file(folder / "finished.safetensors")
    assert all(torch.equal(best[name], ended[name]) for name in ended)
    assert len(list(folder.glob("validation-*.png"))) == 3


def test_a_run_that_was_cut_off_scores_what_is_left(root, tmp_path, monkeypatch):
    from reasonseg.training import validation

    train(settings(tmp_path / "a", root))
    draw, calls = validation.draw_answers, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the midst of the second validation
        draw(*arguments)

    monkeypatch.setattr(validation, "draw_answers", killed)
    run = settings(tmp_path / "b", root)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    train(run)
    a, b = (load_file(tmp_path / n / "out" / "words" / "finished.safetensors") for n in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [(tmp_path / n / "out" / "words" / LOG).read_text(encoding="utf-8") for n in "ab"]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "change, words",
    [
        ("metric=generated.iou", "no 'generated.iou'"),
        ("validation.root=nowhere", "nowhere is no folder"),
    ],
)
def test_mistakes_are_said_before_training(root, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        train(settings(tmp_path / "a", root, change))
    assert not list((tmp_path / "a").rglob("checkpoint-*"))


def test_a_bfloat16_run_is_validated(root, tmp_path):
    train(
        settings(
            tmp_path / "a",
            root,
            "dtype=bfloat16",
            "bf16=true",
            "stages.words.lora=4",
            "stages.words.lr=1e-3",
        )
    )
    assert (
        len((tmp_path / "a" / "out" / "words" / LOG).read_text(encoding="utf-8").splitlines()) == 3
    )
    with pytest.raises(InputError, match="needs bf16: true"):
        settings(tmp_path / "b", root, "dtype=bfloat16")


def test_a_metric_that_is_none():
    with pytest.raises(InputError, match="no 'generated.miou'"):
        found({"generated": {"giou": 0.5}}, "generated.miou")
    assert found({"generated": {"giou": 0.5}}, "generated.giou") == 0.5
