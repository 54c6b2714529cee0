"""LISA's recipe is LISA's, and runs on small files in the published layouts."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_data import parts, reason_seg, refer, semantic, vqa

from reasonseg import Segmenter
from reasonseg.runs import read_run
from reasonseg.train import train


def test_lisa_is_lisa():
    """Numbers of the paper's code: reference facts on its recipe."""
    settings = read_run("configs/lisa.yaml")
    stage = settings.stages["lisa"]
    assert (stage.lr, stage.warmup, stage.steps, stage.optimizer, stage.floor) == (3e-4, 100, 5000, "adamw", 0.0)
    assert (stage.lora, stage.alpha, stage.dropout) == (8, 16.0, 0.05)
    assert stage.batch == 3 * 160 and stage.accumulate == 10, "160 pictures with 3 questions each"
    weights, kinds = settings.data.config.weights, {n: k.kind for n, k in settings.data.config.sets.items()}
    shares = {kind: sum(w for n, w in weights.items() if kinds[n] == kind) for kind in kinds.values()}
    assert shares["semantic"] + shares["parts"] == pytest.approx(9)
    assert (shares["refer"], shares["vqa"], shares["reason"]) == (3, 3, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """LISA's dataset folder, small."""
    root = tmp_path_factory.mktemp("dataset")
    for name in ("ade20k", "cocostuff", "mapillary"):
        semantic(root, name)
    for name in ("paco_lvis", "pascal_part"):
        parts(root, name)
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"), ("refclef", "unc")):
        refer(root, name, by)
    pictures = root / "refer_seg" / "images"
    shutil.copytree(pictures / "mscoco" / "images" / "train2014", pictures / "saiapr_tc-12")
    return str(vqa(reason_seg(root)))


def test_lisas_recipe_runs(dataset, tmp_path):
    """From a model that has the parts, on every data set of the mix: what the recipe trains has moved, the rest has not."""
    splits = [f"data.sets.{n}.split=val" for n in ("refclef", "refcoco", "refcoco+", "refcocog", "reasonseg")]
    small = [
        "stages.lisa.steps=2",
        "stages.lisa.batch=24",
        "stages.lisa.accumulate=2",
        "stages.lisa.warmup=1",
        "report_to=[]",
    ]
    given = [
        "start=embedded",
        f"data.root={dataset}",
        f"out={tmp_path}",
        "save_every=2",
        "workers=0",
        "stages.lisa.lr=1e-2",
    ]
    settings = read_run("configs/lisa.yaml", [*given, *small, *splits])
    stream = settings.data.config.training(48, 0)
    assert len({stream.of(i) for i in range(48)}) >= 5
    train(settings)
    before = Segmenter.from_pretrained(dtype="bfloat16").state_dict()
    after = {k.removeprefix("segmenter."): v for k, v in load_file(tmp_path / "lisa" / "finished.safetensors").items()}
    moved = {k for k, v in after.items() if not torch.equal(v.to(torch.bfloat16), before[k].to(torch.bfloat16))}
    expected = ("q_proj", "v_proj")
    for name in moved:
        whole = (
            name.startswith(("backbone.model.lm_head", "prompter", "decoder.model.mask_decoder"))
            or "embed_tokens" in name
        )
        assert whole or ("language_model.layers" in name and name.split(".")[-2] in expected), name
    assert any("q_proj" in n and "language_model" in n for n in moved) and any(n.startswith("prompter") for n in moved)
    assert Segmenter.from_pretrained(tmp_path / "model").settings.about["rounds"][-1] == {"lisa": 48}
