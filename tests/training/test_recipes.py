"""LISA's recipe is LISA's, and runs on small files in the published layouts."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_data import parts, reason_seg, refer, semantic, vqa

from reasonseg import Segmenter
from reasonseg.config.training import read_run
from reasonseg.training.run import train


def test_lisa_is_lisa():
    """Numbers of the paper's code: reference facts on its recipe."""
    settings = read_run("configs/lisa.yaml")
    stage = settings.stages["lisa"]
    assert (stage.lr, stage.warmup, stage.steps, stage.optimizer, stage.floor) == (
        3e-4,
        100,
        5000,
        "adamw",
        0.0,
    )
    assert (stage.lora, stage.alpha, stage.dropout) == (8, 16.0, 0.05)
    assert stage.batch == 3 * 160 and stage.accumulate == 10, "160 pictures with 3 questions each"
    weights, kinds = (
        settings.data.config.weights,
        {n: k.kind for n, k in settings.data.config.sets.items()},
    )
    shares = {
        kind: sum(w for n, w in weights.items() if kinds[n] == kind) for kind in kinds.values()
    }
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
    for name, by in (
        ("refcoco", "unc"),
        ("refcoco+", "unc"),
        ("refcocog", "umd"),
        ("refclef", "unc"),
    ):
        refer(root, name, by)
    pictures = root / "refer_seg" / "images"
    shutil.copytree(pictures / "mscoco" / "images" / "train2014", pictures / "saiapr_tc-12")
    return str(vqa(reason_seg(root)))


def test_lisas_recipe_runs(dataset, tmp_path):
    """From a model that has the parts, on every data set of the mix: what the recipe trains has
    moved, the rest has not.
    """
    splits = [
        f"data.sets.{n}.split=val"
        for n in ("refclef", "refcoco", "refcoco+", "refcocog", "reasonseg")
    ]
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
    after = {
        k.removeprefix("segmenter."): v
        for k, v in load_file(tmp_path / "lisa" / "finished.safetensors").items()
    }
    moved = {
        k
        for k, v in after.items()
        if not torch.equal(v.to(torch.bfloat16), before[k].to(torch.bfloat16))
    }
    expected = ("q_proj", "v_proj")
    for name in moved:
        whole = (
            name.startswith(("backbone.model.lm_head", "prompter", "decoder.model.mask_decoder"))
            or "embed_tokens" in name
        )
        assert whole or ("language_model.layers" in name and name.split(".")[-2] in expected), name
    assert any("q_proj" in n and "language_model" in n for n in moved) and any(
        n.startswith("prompter") for n in moved
    )
    assert Segmenter.from_pretrained(tmp_path / "model").settings.about["rounds"][-1] == {
        "lisa": 48
    }


def test_vlp_sams_recipe_runs(font, tmp_path):
    """From a CLIP and a SAM in folders, on drawn episodes: only what lies between them learns,
    and it answers references.
    """
    from reasonseg.prompters.vlp import Config as Vlp

    vlp = Vlp.example()
    vlp.build().save(tmp_path / "clip")
    embedded = Segmenter.from_pretrained(device="cpu")
    embedded.decoder.save(tmp_path / "sam")
    stage = read_run("configs/vlp_sam.yaml").stages["references"]
    assert (stage.lr, stage.optimizer, stage.batch, stage.steps) == (
        1e-4,
        "adamw",
        8,
        50 * 4208 // 8,
    )
    settings = read_run(
        "configs/vlp_sam.yaml",
        [
            f"model.references.source={tmp_path}/clip",
            "model.references.surgery=1",
            f"model.decoder.source={tmp_path}/sam",
            f"out={tmp_path}/out",
            "workers=0",
            "report_to=[]",
            "save_every=2",
            "data.benchmark=scenes",
            "data.size=96",
            "stages.references.steps=2",
            "stages.references.batch=4",
            "stages.references.lr=1e-2",
        ],
    )
    model = train(settings)
    for (name, a), (_, b) in zip(
        model.decoder.named_parameters(), embedded.decoder.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=name)
    clip = Vlp(source=str(tmp_path / "clip"), surgery=1, width_out=model.decoder.width).build().clip
    for (name, a), (_, b) in zip(
        model.references.clip.named_parameters(), clip.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    again = Segmenter.from_pretrained(tmp_path / "out" / "model", device="cpu")
    sample = settings.data.config.build()[0]
    assert again(sample.query).masks.shape == sample.truth.masks.shape
