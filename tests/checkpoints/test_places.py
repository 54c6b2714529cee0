"""Folders that hold something else than a model are named as what they are."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from reasonseg import InputError, Segmenter
from reasonseg.checkpoints.released.files import Shards
from reasonseg.nn.pretrained import PACKAGED

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def test_a_git_lfs_pointer(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_text(POINTER, encoding="utf-8")
    with pytest.raises(InputError, match="is a Git LFS pointer"):
        Segmenter.from_pretrained(tmp_path, device="cpu")
    ours = tmp_path / "ours"
    shutil.copytree(PACKAGED["tiny"], ours)
    (ours / "decoder" / "model.safetensors").write_text(POINTER, encoding="utf-8")
    with pytest.raises(InputError, match="decoder/model.safetensors is a Git LFS pointer"):
        Segmenter.from_pretrained(ours, device="cpu")


def test_a_folder_with_an_adapter_only(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="holds a LoRA adapter only"):
        Segmenter.from_pretrained(tmp_path, device="cpu")


def test_a_run_stands_for_its_model(tmp_path):
    shutil.copytree(PACKAGED["tiny"], tmp_path / "model")
    (tmp_path / "run.json").write_text(json.dumps({}), encoding="utf-8")
    model = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert model.settings.about["name"] == "reasonseg-tiny"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_keys_of_parallel_training(kind, tmp_path):
    tensors = {"module.a": torch.ones(3), "module.b.c": torch.zeros(2, 2)}
    if kind == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    assert set(shards.of) == {"a", "b.c"} and shards.shape("b.c") == (2, 2)
    assert {k: v.sum().item() for k, v in shards.items()} == {"a": 3, "b.c": 0}
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model.safetensors")
    if kind == "safetensors":
        assert set(Shards(tmp_path).of) == {"module.a", "b"}
