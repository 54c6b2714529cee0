"""Bad released weights: each one clear error, never a wrong mask; and training checkpoints,
LLaVA, the command.
"""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from parity import oracle

from reasonseg import Query, Segmenter
from reasonseg.checkpoints.folder import STORED, load
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.verify import differences
from reasonseg.cli.main import main
from reasonseg.errors import InputError


def copied(source, place):
    """A folder's files, to be spoilt; the source may be read-only."""
    shutil.copytree(source, place, copy_function=shutil.copyfile)
    place.chmod(0o755)
    return place


@pytest.fixture(scope="module")
def clip():
    return str(oracle("A_lisa", "clip-vit-tiny-patch14"))


@pytest.fixture
def copy(tmp_path):
    """LISA's files."""
    return copied(oracle("A_lisa", "checkpoint"), tmp_path / "weights")


@pytest.fixture(scope="module")
def released(clip):
    return Segmenter.from_pretrained(oracle("A_lisa", "checkpoint"), clip=clip)


def change(file, **fields):
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8"
    )


def clip_with(clip, tmp_path, **fields):
    """A copy of the vision tower whose config says something else."""
    other = copied(clip, tmp_path / "clip")
    vision = json.loads((other / "config.json").read_text(encoding="utf-8"))["vision_config"]
    change(other / "config.json", vision_config={**vision, **fields})
    return other


def refused(copy, clip, *words, **options):
    with pytest.raises(InputError) as error:
        Segmenter.from_pretrained(copy, clip=clip, **options)
    for word in words:
        assert str(word) in str(error.value), str(error.value)


def test_a_truncated_shard(copy, clip):
    shard = copy / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-5000])
    refused(copy, clip, shard, "fetch it again")


def test_a_truncated_safetensors(copy, clip):
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in Shards(copy).items()}, copy / "model.safetensors")
    (copy / "pytorch_model.bin.index.json").unlink()
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(copy, clip, "model.safetensors", "cut short")


def test_a_missing_shard(copy, clip):
    (copy / "pytorch_model-00002-of-00002.bin").unlink()
    refused(copy, clip, "pytorch_model-00002-of-00002.bin", "not there")


def test_a_shard_without_what_the_index_promises(copy, clip):
    shard = copy / "pytorch_model-00002-of-00002.bin"
    weights = torch.load(shard, weights_only=True)
    gone = next(iter(weights))
    del weights[gone]
    torch.save(weights, shard)
    refused(copy, clip, shard, gone)


def test_a_missing_key_without_an_index(copy, clip):
    weights = {k: v.clone() for k, v in Shards(copy).items()}
    del weights["model.text_hidden_fcs.0.2.bias"]
    weights["model.stray"] = torch.zeros(1)
    (copy / "pytorch_model.bin.index.json").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    refused(copy, clip, "missing: prompter.mlp.2.bias", "left over: model.stray")
    allowed = Segmenter.from_pretrained(copy, clip=clip, allow=("prompter.mlp.2", "model.stray"))
    assert float(allowed.prompter.mlp[2].bias.abs().max()) == 0.0


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('boom').touch()",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it(copy, clip, zipped, monkeypatch):
    monkeypatch.chdir(copy)
    shard = copy / "pytorch_model-00002-of-00002.bin"
    if zipped:
        torch.save({"weight": Bomb()}, shard)
    else:
        shard.write_bytes(pickle.dumps({"weight": Bomb()}))
    refused(copy, clip, shard)
    assert not (copy / "boom").exists()


def test_seg_is_two_ids(copy, clip):
    added = json.loads((copy / "added_tokens.json").read_text(encoding="utf-8"))
    seg = added.pop("[SEG]")
    (copy / "added_tokens.json").write_text(
        json.dumps({name: i - (i > seg) for name, i in added.items()}), encoding="utf-8"
    )
    refused(copy, clip, "[SEG]", "one added token", "ids")


def test_added_ids_that_do_not_follow(copy, clip):
    (copy / "added_tokens.json").write_text(
        json.dumps({"[SEG]": 490, "<im_start>": 481, "<im_end>": 482}), encoding="utf-8"
    )
    refused(copy, clip, "added_tokens.json", 490, 480)


def test_vocabulary_size(copy, clip):
    change(copy / "config.json", vocab_size=500)
    refused(copy, clip, "config.json", 500, 483)


def test_more_tokens_than_rows(copy, clip):
    (copy / "added_tokens.json").write_text(
        json.dumps({"[SEG]": 480, "<im_start>": 481, "<im_end>": 482, "<more>": 483}),
        encoding="utf-8",
    )
    refused(copy, clip, 484, 483)


def test_a_clip_of_another_patch_size(copy, clip, tmp_path):
    other = clip_with(clip, tmp_path, patch_size=16)
    refused(copy, str(other), other / "config.json", "patch_size is 16", "patch14")
    change(copy / "config.json", vision_tower="my-tower", mm_vision_tower="my-tower")
    refused(copy, str(other), "196 image tokens", 256)


def test_a_clip_of_another_width(copy, clip, tmp_path):
    other = clip_with(clip, tmp_path, hidden_size=64)
    refused(copy, str(other), "hidden_size is 64", 32)


def test_no_vision_tower(copy):
    change(copy / "config.json", vision_tower="nowhere-14", mm_vision_tower="nowhere-14")
    refused(copy, None, "nowhere-14", "--clip")


@pytest.mark.parametrize("mark", ["file", "config"])
def test_layouts_of_version_0(copy, clip, mark):
    if mark == "file":
        torch.save({}, copy / "pytorch_model-visual_model.bin")
    else:
        change(copy / "config.json", mm_use_im_patch_token=True)
    refused(copy, clip, "v0", "<im_patch>")


def test_a_template_that_does_not_exist(copy, clip):
    refused(copy, clip, "lava_v1", "llava_v1", template="lava_v1")


def test_quantization_that_does_not_exist(copy, clip):
    refused(copy, clip, "int7", "nf4", quantization="int7")


def test_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"settings\.yaml"):
        Segmenter.from_pretrained(tmp_path)


# Training checkpoints

ADAPTED = "base_model.model.model.layers.0.self_attn.q_proj"


def with_adapter(copy):
    """The weights as training names them, with the oracle's adapter at one projection; and the
    oracle's factors.
    """
    factors = np.load(oracle("A_lisa", "extra", "lora_merge.npz"))
    weights = {"base_model.model." + k: v.float() for k, v in Shards(copy).items()}
    for side in "AB":
        weights[f"{ADAPTED}.lora_{side}.default.weight"] = torch.from_numpy(
            factors[f"lora_{side}"]
        ).float()
    return weights, factors


@pytest.mark.parametrize("newer", [False, True], ids=["peft 0.4", "newer peft"])
def test_a_training_checkpoint_is_merged(copy, clip, released, newer):
    """zero_to_fp32's output over a base whose tokenizer has none of LISA's tokens yet."""
    weights, factors = with_adapter(copy)
    base = ADAPTED + (".base_layer" if newer else "") + ".weight"
    weights.pop(ADAPTED + ".weight")
    weights[base] = torch.from_numpy(factors["base_weight"]).float()
    weights[
        "base_model.model.model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    ] = torch.ones(32)
    for shard in copy.glob("pytorch_model*"):
        shard.unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "added_tokens.json").unlink()
    change(copy / "config.json", vocab_size=480)
    for source in (copy, copy / "pytorch_model.bin"):
        merged = Segmenter.from_pretrained(source, clip=clip)
        found = merged.backbone.layers[0].self_attn.q_proj.weight
        np.testing.assert_allclose(found.detach(), factors["merged_weight"], atol=1e-6)
        assert merged.backbone.markers == released.backbone.markers
    untouched = merged.backbone.layers[1].self_attn.q_proj.weight
    assert torch.equal(untouched, released.backbone.layers[1].self_attn.q_proj.weight)


def test_alpha_is_read_where_it_is_said(copy, clip):
    weights, factors = with_adapter(copy)
    base = weights[ADAPTED + ".weight"].clone()
    (copy / "pytorch_model.bin.index.json").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 8}', encoding="utf-8")
    found = (
        Segmenter.from_pretrained(copy, clip=clip)
        .backbone.layers[0]
        .self_attn.q_proj.weight.detach()
    )
    np.testing.assert_allclose(found - base, 0.5 * factors["lora_B"] @ factors["lora_A"], atol=1e-5)


# LLaVA v1 and a SAM as the start of a training


@pytest.fixture
def sam(tmp_path):
    stored = np.load(oracle("B_sam", "state_dict.npz"))
    torch.save({k: torch.from_numpy(stored[k]).float() for k in stored}, tmp_path / "sam.pth")
    return str(tmp_path / "sam.pth")


@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_llava_and_sam(copy, clip, sam, picture, projector):
    from transformers.activations import ACT2FN

    kept = ("model.visual_model.", "model.text_hidden_fcs.")
    weights = {k: v.float() for k, v in Shards(copy).items() if not k.startswith(kept)}
    rows = slice(0, 480)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][rows].clone()
    first = {k: weights[f"model.mm_projector.{k}"] for k in ("weight", "bias")}
    if projector == "mlp2x_gelu":
        for k in first:
            weights[f"model.mm_projector.0.{k}"] = weights.pop(f"model.mm_projector.{k}")
        weights["model.mm_projector.2.weight"] = torch.randn(
            64, 64, generator=torch.Generator().manual_seed(0)
        )
        weights["model.mm_projector.2.bias"] = torch.ones(64)
    for shard in copy.glob("pytorch_model*"):
        shard.unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "added_tokens.json").unlink()
    change(copy / "config.json", vocab_size=480, mm_use_im_start_end=False)
    refused(copy, clip, "--sam")
    model = Segmenter.from_pretrained(copy, clip=clip, sam=sam)
    assert model.backbone.markers.seg == 480 and model.backbone.markers.rej == 481
    seen = model.backbone.model.model.multi_modal_projector(torch.ones(1, 32))
    expected = torch.ones(1, 32) @ first["weight"].T + first["bias"]
    if projector == "mlp2x_gelu":
        expected = ACT2FN["gelu"](expected) @ weights["model.mm_projector.2.weight"].T + 1
    torch.testing.assert_close(seen, expected)
    assert model(Query(picture, "the cup"), force_seg=True, max_new_tokens=4).masks.shape == (
        1,
        48,
        64,
    )


# The command


def test_import_and_verify(clip, tmp_path, capsys):
    source = str(oracle("A_lisa", "checkpoint"))
    assert main(["import", source, str(tmp_path / "lisa"), "--clip", clip, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "5.1 M parameters" in said
    found = dict(part.split(" ") for part in said.splitlines()[-1].split(": ")[1].split(", "))
    assert set(found) == {"embedding", "logits", "score"} and all(
        float(v) < 2e-4 for v in found.values()
    )
    stored = {v.dtype for _, v in Shards(tmp_path / "lisa" / "backbone").items()}
    assert torch.bfloat16 in stored  # as it was released


def test_verify_sees_a_difference(clip):
    source = str(oracle("A_lisa", "checkpoint"))
    parts = load(source, device="cpu", dtype=STORED, clip=clip)
    with torch.no_grad():
        parts.decoder.model.mask_decoder.iou_token.weight += 0.5
    assert differences(parts, source, None)["logits"] > 1e-3


def test_import_of_nothing(tmp_path, capsys):
    assert main(["import", str(tmp_path), str(tmp_path / "x")]) == 2
    assert "is no model we know" in capsys.readouterr().err
