"""A short run of every stage, killed and resumed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from reasonseg import InputError, Segmenter
from reasonseg.config.training import read_run
from reasonseg.nn.pretrained import EMBEDDED
from reasonseg.training.run import COMPLETE, latest, train

SMALL = [
    f"model.backbone.tokenizer={EMBEDDED}/backbone",
    "model.backbone.network.vision_config.num_hidden_layers=2",
    "model.decoder.network.vision_config.num_hidden_layers=1",
    "model.decoder.network.vision_config.global_attn_indexes=[0]",
    "stages.tower.steps=2",
    "stages.tower.batch=4",
    "stages.decoder.steps=2",
    "stages.decoder.batch=4",
    "stages.language.steps=6",
    "stages.language.batch=10",
    "stages.together.steps=2",
    "stages.together.batch=10",
    "stages.finish.steps=2",
    "stages.finish.batch=10",
    "save_every=2",
    "log_every=1",
    "workers=0",
    "bf16=false",
]


def overrides(out):
    return [*SMALL, f"out={out}"]


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(font, tmp_path):
    train(read_run("configs/tiny.yaml", overrides(tmp_path / "a")))
    command = [
        sys.executable,
        "-m",
        "reasonseg.cli",
        "train",
        "configs/tiny.yaml",
        *overrides(tmp_path / "b"),
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.time() + 240
    while not list((tmp_path / "b" / "language").glob(f"checkpoint-*/{COMPLETE}")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / "language" / "finished.safetensors").exists()
    half = tmp_path / "b" / "language" / "checkpoint-4"  # and one that was being written
    half.mkdir(exist_ok=True)
    (half / COMPLETE).unlink(missing_ok=True)
    train(read_run("configs/tiny.yaml", overrides(tmp_path / "b")))
    ours, theirs = (
        {
            **load_file(tmp_path / x / "model/backbone/model.safetensors"),
            **load_file(tmp_path / x / "model/decoder/model.safetensors"),
        }
        for x in "ab"
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    loaded = Segmenter.from_pretrained(tmp_path / "b" / "model")
    assert loaded.settings.about["rounds"][0]["language"] == 60


def test_the_newest_whole_checkpoint_counts(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert latest(tmp_path / "none") is None
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert latest(tmp_path).endswith("checkpoint-4") and not (tmp_path / "checkpoint-10").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ("stages.tower.train=[nothing]", "no parameter begins"),
        (
            "stages.tower.train=[segmenter.backbone, segmenter.promter]",
            "begins with 'segmenter.promter'",
        ),
        ("stages.tower.options.speed=3", "objective recipes.embedded.patches: no option 'speed'"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(font, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        train(read_run("configs/tiny.yaml", [*overrides(tmp_path), change]))


def test_aiming_needs_codes(font, tmp_path):
    settings = read_run("configs/tiny.yaml", overrides(tmp_path))
    settings.stages.pop("tower"), settings.stages.pop("decoder")
    with pytest.raises(InputError, match="needs a coder"):
        train(settings)
