"""One config, one process or two, whole batches or parts of them: the same losses and the same
weights.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import config, pairs

from reasonseg import InputError
from reasonseg.config.training import read_run
from reasonseg.training.run import train

STEPS = 3


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "words" / "finished.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = pairs(tmp_path_factory.mktemp("own") / "shapes", 6)
    # pictures that lack something to ask for
    for label, numbers in (
        ("disc", (0, 1)),
        ("bar", (2, 3)),
    ):
        for number in numbers:
            (root / "masks" / label / f"{number:03}.png").unlink()
    return str(root)


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = run([sys.executable], "train", config(folder, root))
    return weights(folder), losses(done.stdout)


def close(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> None:
    """Apart by less than a hundredth of the way they went: AdamW makes a step of every rounding
    error where a gradient is 0.
    """
    apart = torch.stack([(a[n] - b[n]).square().sum() for n in a]).sum().sqrt()
    way = torch.stack([(a[n] - start[n]).square().sum() for n in a]).sum().sqrt()
    assert way > 0.1 and apart < 0.01 * way, (float(apart), float(way))


TWO = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc_per_node",
    "2",
    "--master_port",
    "29611",
]


def run(launch: list[str], *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, "-m", "reasonseg.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("{'loss'")]


@pytest.fixture(scope="module")
def start():
    from reasonseg import Segmenter
    from reasonseg.training.objectives.language import Language

    return Language(Segmenter.from_pretrained(device="cpu", dtype="float32")).state_dict()


def test_parts_of_a_batch_add_up(root, alone, start, tmp_path):
    done = run([sys.executable], "train", config(tmp_path / "parts", root, accumulate=4))
    close(alone[0], weights(tmp_path / "parts"), start)
    assert losses(done.stdout) == alone[1] and len(alone[1]) == STEPS


def test_two_processes_are_one(root, alone, start, tmp_path):
    file = config(tmp_path / "two", root, accumulate=2)
    done = run(TWO, "train", file)
    close(alone[0], weights(tmp_path / "two"), start)
    assert losses(done.stdout) == alone[1]
    assert (tmp_path / "two" / "out" / "model" / "settings.yaml").is_file()
    assert not list((tmp_path / "two" / "out" / "words").glob("checkpoint-*"))


def test_sharded_it_is_the_same(root, alone, start, tmp_path):
    """Weights in parts (FSDP) give one process's losses and end with its weights, in one file."""
    done = run(TWO, "train", config(tmp_path / "sharded", root), "shard=true")
    close(alone[0], weights(tmp_path / "sharded"), start)
    assert losses(done.stdout) == alone[1]
    assert {f.name for f in (tmp_path / "sharded" / "out" / "words").iterdir()} == {
        "finished.safetensors"
    }
    assert (tmp_path / "sharded" / "out" / "model" / "settings.yaml").is_file()


def test_sharded_with_adapters_and_killed(root, start, tmp_path):
    adapted = {"lora": 4, "tokens": True, "train": ["segmenter.prompter."], "lr": 1e-2}
    run([sys.executable], "train", config(tmp_path / "one", root, **adapted))
    file = config(tmp_path / "two", root, **adapted)
    script = str(Path(__file__).with_name("stop_sharded.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    stopped = subprocess.run(
        [*TWO, script, file], env=environment, capture_output=True, text=True, timeout=300
    )
    assert "every layer is sharded: True" in stopped.stdout, stopped.stderr[-3000:]
    assert not (tmp_path / "two" / "out" / "words" / "finished.safetensors").exists()
    run(TWO, "train", file, "shard=true", "save_every=2")
    close(weights(tmp_path / "one"), weights(tmp_path / "two"), start)


def test_sharded_in_bfloat16_and_kinds_that_do_not_mix(root, tmp_path):
    """LISA's kind of run: frozen weights in bfloat16, autocast. A checkpoint goes on as what it
    was.
    """
    how = ["dtype=bfloat16", "bf16=true", "save_every=2"]
    adapted = {"lora": 4, "train": ["segmenter.prompter."], "lr": 1e-3}
    one, two = (config(tmp_path / name, root, **adapted) for name in ("one", "two"))
    plain = run(TWO, "train", one, *how)
    sharded = run(TWO, "train", two, "shard=true", *how)
    first, second = (
        [float(line.split("'loss': '")[1].split("'")[0]) for line in losses(d.stdout)]
        for d in (plain, sharded)
    )
    assert second == pytest.approx(first, rel=0.02) and len(second) == STEPS
    file = config(tmp_path / "three", root, **adapted)
    script = str(Path(__file__).with_name("stop_sharded.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [*TWO, script, file], env=environment, capture_output=True, text=True, timeout=300
    )
    with pytest.raises(InputError, match="go on with shard=true"):
        train(read_run(file))
    with pytest.raises(InputError, match="began with"):
        train(read_run(file, ["dtype=bfloat16", "bf16=true"]))
    with pytest.raises(InputError, match="trained other parameters"):
        train(read_run(file, ["stages.words.lora=2"]))


@pytest.mark.parametrize(
    "change, words",
    [
        (["features=x"], "without features"),
        (["stages.words.optimizer=muon"], "needs optimizer: adamw"),
        ([], "several processes"),
    ],
)
def test_what_sharding_does_not_go_with(root, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        train(read_run(config(tmp_path / "run", root), ["shard=true", *change]))


def test_losses_of_parts_are_those_of_the_whole(root, segmenter):
    from reasonseg.datasets.folder import Config
    from reasonseg.training.objectives.language import Language

    stream = Config(root, absent=0.5).training(8, 0)
    samples = [stream[i] for i in range(8)]
    objective = Language(segmenter)
    counts = objective.counts({"samples": samples})
    with torch.no_grad():
        whole = segmenter.loss(samples)
        parts = [segmenter.loss(samples[k : k + 2], counts) for k in range(0, 8, 2)]
    assert len({len(s.truth.masks) for s in samples}) == 2, "some are absent"
    for name in whole:
        assert torch.allclose(sum(p[name] for p in parts), whole[name], atol=1e-5), name


def test_adapters_are_trained_and_folded(root, tmp_path):
    train(read_run(config(tmp_path / "lora", root, lora=4, train=["segmenter.prompter."], lr=1e-2)))
    found = weights(tmp_path / "lora")
    assert not [name for name in found if "lora" in name]
    logged = json.loads(json.dumps({k: list(v.shape) for k, v in found.items() if "q_proj" in k}))
    assert logged
    from reasonseg import Segmenter

    first = Segmenter.from_pretrained(device="cpu", dtype="float32").backbone.layers.state_dict()
    trained = {
        k.split("language_model.layers.")[1]: v
        for k, v in found.items()
        if "language_model.layers." in k
    }
    changed = {k.rsplit(".", 2)[1] for k, v in trained.items() if (v - first[k]).abs().max() > 1e-5}
    assert changed == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "stage, words", [({"accumulate": 3}, "equal parts"), ({"accumulate": 0}, "equal parts")]
)
def test_batches_that_cannot_be_split(root, tmp_path, stage, words):
    with pytest.raises(InputError, match=words):
        read_run(config(tmp_path / "run", root, **stage))


def masks(folder: Path) -> dict[str, list]:
    """What each question was answered with, but for scores: their last digits depend on which
    pictures are encoded together.
    """
    rows = [
        json.loads(line)
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {
        r["id"]: [r["answer"], r["counts"], [o["segmentation"] for o in r["objects"]]] for r in rows
    }


def test_an_evaluation_is_shared(font, tmp_path):
    """Two processes give the rows and the summary of one, bit for bit; what a killed run kept is
    not asked again.
    """
    how = ["eval", "scenes", "--limit", "48", "--json"]
    one = run([sys.executable], *how, "--out", str(tmp_path / "one"))
    two = run(TWO, *how, "--out", str(tmp_path / "two"))
    said = [line for line in two.stdout.splitlines() if line.startswith("{")]
    assert (
        said == [line for line in one.stdout.splitlines() if line.startswith("{")]
        and len(said) == 1
    )
    assert masks(tmp_path / "one") == masks(tmp_path / "two") and len(masks(tmp_path / "one")) == 48
    assert {f.name for f in (tmp_path / "two").iterdir()} == {
        "rows.jsonl",
        "run.json",
        "summary.json",
    }
    lines = (tmp_path / "two" / "rows.jsonl").read_text(encoding="utf-8").splitlines(True)
    # as a run of two that was killed leaves it
    (tmp_path / "two" / "rows.jsonl").write_text("".join(lines[:16]), encoding="utf-8")
    (tmp_path / "two" / "rows-1.jsonl").write_text(
        "".join(lines[16:32]) + lines[32][:40], encoding="utf-8"
    )
    (tmp_path / "two" / "summary.json").unlink()
    again = run([sys.executable], *how, "--out", str(tmp_path / "two"))
    assert [line for line in again.stdout.splitlines() if line.startswith("{")] == said
    assert masks(tmp_path / "two") == masks(tmp_path / "one")
