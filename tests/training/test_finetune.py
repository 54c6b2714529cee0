"""Fine-tuning on a folder: it learns, it resumes to the same weights, and its result is an
ordinary model.
"""

import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from small_data import pairs

from reasonseg import Segmenter
from reasonseg.cli.main import main
from reasonseg.config.schema import override, parse
from reasonseg.errors import InputError
from reasonseg.nn.lora import add_lora, fold_adapters
from reasonseg.training.finetune import finetune
from reasonseg.training.prepare import FinetuneSettings

FEW = ["train.max_steps=6", "train.batch=4", "train.save_every=2", "data.share=0.2"]


def settings(*overrides):
    return parse(FinetuneSettings, override({}, list(overrides)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(pairs(tmp_path_factory.mktemp("own") / "shapes", 16))


def test_it_learns_shapes_it_never_saw(root, tmp_path):
    """Discs and bars are no emoji; sixty steps on a dozen pictures are enough to mark them."""
    model = Segmenter.from_pretrained(device="cpu")
    how = settings(
        "train.max_steps=60", "train.batch=8", "train.lr=1e-3", "train.warmup=4", "data.share=0.25"
    )
    summary = finetune(model, root, tmp_path / "out", how)
    # of its own accord it says nothing of discs at first
    for way, least in (
        ("teacher_forced", 0.08),
        ("generated", 0.3),
    ):
        before, after = (summary[when][way]["giou"] for when in ("before", "after"))
        assert after > before + least, (way, before, after)
    assert (tmp_path / "out" / "understood" / "sheet.png").is_file() and (
        tmp_path / "out" / "after" / "sheet.png"
    ).is_file()
    assert json.loads(
        (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    ) == json.loads(json.dumps(summary))
    again = Segmenter.from_pretrained(tmp_path / "out" / "model")
    assert not any("lora" in name for name, _ in again.named_parameters())
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_killed_and_resumed_it_ends_the_same(root, tmp_path):
    finetune(Segmenter.from_pretrained(device="cpu"), root, tmp_path / "a", settings(*FEW))
    command = [
        sys.executable,
        "-m",
        "reasonseg.cli",
        "finetune",
        root,
        "--out",
        str(tmp_path / "b"),
        *FEW,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 200
    while (
        not list((tmp_path / "b" / "training").glob("checkpoint-*"))
        and process.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers and not psutil.wait_procs(workers, timeout=10)[1], "its workers wait for ever"
    assert not (tmp_path / "b" / "summary.json").exists(), "it was too quick to be killed"
    assert main(["finetune", root, "--out", str(tmp_path / "b"), *FEW]) == 0
    for file in sorted((tmp_path / "a" / "model").rglob("*.safetensors")):
        assert (
            file.read_bytes()
            == (tmp_path / "b" / "model" / file.relative_to(tmp_path / "a" / "model")).read_bytes()
        ), file


def test_a_finished_run_is_not_run_again_and_others_are_refused(root, tmp_path):
    few = settings(*FEW, "train.max_steps=1")
    first = finetune(Segmenter.from_pretrained(device="cpu"), root, tmp_path / "out", few)
    began = time.time()
    assert finetune(
        Segmenter.from_pretrained(device="cpu"), root, tmp_path / "out", few
    ) == json.loads(json.dumps(first))
    assert time.time() - began < 10 and not (tmp_path / "out" / "training").exists()
    with pytest.raises(InputError, match="settings.train.lr 0.0003, now 1e-05"):
        finetune(
            Segmenter.from_pretrained(device="cpu"),
            root,
            tmp_path / "out",
            settings(*FEW, "train.lr=1e-5"),
        )


def test_a_bfloat16_model_learns_in_float32(root, tmp_path):
    model = Segmenter.from_pretrained(device="cpu", dtype="bfloat16")
    before = model.decoder.model.mask_decoder.iou_token.weight.detach().clone()
    finetune(model, root, tmp_path / "out", settings(*FEW, "train.max_steps=2", "train.lr=1e-3"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not torch.equal(before, model.decoder.model.mask_decoder.iou_token.weight)
    with pytest.raises(InputError, match="float16 overflows"):
        finetune(
            Segmenter.from_pretrained(device="cpu", dtype="float16"),
            root,
            tmp_path / "x",
            settings(*FEW),
        )


def test_bad_samples_stop_it_unless_told(root, tmp_path, capsys):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(root, spoilt)
    (spoilt / "images" / "003.png").write_bytes(b"nothing")
    assert main(["finetune", str(spoilt), "--out", str(tmp_path / "out"), *FEW]) == 2
    said = capsys.readouterr().err
    assert "2 of 32 samples cannot be used" in said and "003.png" in said and "--skip-bad" in said
    assert not (tmp_path / "out").exists()
    short = [*FEW, "train.max_steps=1"]
    assert (
        main(["finetune", str(spoilt), "--out", str(tmp_path / "out"), "--skip-bad", *short]) == 0
    )
    assert (
        json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["skipped"] == 2
    )


def test_one_image_is_too_few(tmp_path):
    with pytest.raises(InputError, match="no image is left for validation"):
        finetune(
            Segmenter.from_pretrained(device="cpu"),
            str(pairs(tmp_path / "d", 1)),
            tmp_path / "out",
            settings(*FEW),
        )


@pytest.mark.parametrize(
    "change, words", [("train.steps=3", "max_steps"), ("train.lr=fast", "expected float")]
)
def test_wrong_settings_are_named(change, words):
    with pytest.raises(InputError, match=words):
        settings(change)


def test_adapters_fold_into_the_weights(segmenter):
    import copy

    layers = copy.deepcopy(segmenter.backbone.layers)
    names = [name for name, _ in layers.named_parameters()]
    weight = layers[0].self_attn.q_proj.weight.detach().clone()
    added = add_lora(layers, 4, 8.0)
    assert len(added) == 4 * len(layers)
    with torch.no_grad():
        for p in added:
            p.normal_(0, 0.1)
    a, b = (
        getattr(layers[0].self_attn.q_proj, f"lora_{s}")["default"].weight.detach() for s in "AB"
    )
    fold_adapters(layers)
    assert [name for name, _ in layers.named_parameters()] == names
    torch.testing.assert_close(layers[0].self_attn.q_proj.weight.detach(), weight + 2 * b @ a)
