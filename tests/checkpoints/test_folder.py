import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from reasonseg import InputError, Segmenter
from reasonseg.nn.pretrained import EMBEDDED


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def test_the_embedded_model_is_small_and_plain():
    size = sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file())
    assert size <= 17 * 2**20
    assert {f.suffix for f in EMBEDDED.rglob("*") if f.is_file()} <= {
        ".safetensors",
        ".json",
        ".yaml",
        ".md",
    }
    weights = load_file(EMBEDDED / "backbone" / "model.safetensors")
    assert {t.dtype for t in weights.values()} <= {torch.bfloat16, torch.float16}


def test_parts_are_ordinary_transformers_folders():
    from transformers import AutoTokenizer, LlavaForConditionalGeneration, SamModel

    assert SamModel.from_pretrained(EMBEDDED / "decoder").config.model_type == "sam"
    LlavaForConditionalGeneration.from_pretrained(EMBEDDED / "backbone")
    assert "<SEG>" in AutoTokenizer.from_pretrained(EMBEDDED / "backbone").get_vocab()


@pytest.mark.parametrize("part", ["backbone/model", "decoder/model", "prompter"])
@pytest.mark.parametrize("change", ["missing", "left over", "reshaped"])
def test_weights_that_do_not_fit_stop_the_load(folder, part, change):
    file = folder / f"{part}.safetensors"
    weights = load_file(file)
    key = next(k for k in weights if k.endswith("weight") and weights[k].ndim == 2)
    if change == "missing":
        del weights[key]
    elif change == "left over":
        weights["stranger.weight"] = torch.zeros(2)
    else:
        weights[key] = torch.zeros(3, 3, dtype=weights[key].dtype)
    save_file(weights, file, metadata={"format": "pt"})
    # transformers saves under other prefixes
    name = "stranger" if change == "left over" else key.split(".")[-2]
    with pytest.raises(InputError, match=f"{change}: .*{name}"):
        Segmenter.from_pretrained(folder)
    assert Segmenter.from_pretrained(folder, allow=("",)) is not None


def test_widths_must_agree(folder):
    tree = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    tree["prompter"]["width_out"] = 7
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    weights = load_file(folder / "prompter.safetensors")
    last = [k for k in weights if k.startswith("mlp.2")]
    save_file(
        {**weights, **{k: weights[k][:7].contiguous() for k in last}},
        folder / "prompter.safetensors",
    )
    with pytest.raises(InputError, match="width 7, the decoder takes"):
        Segmenter.from_pretrained(folder)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": "nowhere/at/all"}, "neither a file or folder nor a hub id"),
        ({"source": "no-body/no-model"}, "no such folder"),
        ({"dtype": "float8"}, "not one of"),
        ({"quantization": "int7"}, "not one of int8"),
        ({"clip": "somewhere"}, "does not apply"),
        ({"template": "nonsense"}, "not one of plain"),
        ({"read": "after"}, "not one of predicting"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        Segmenter.from_pretrained(options.pop("source", None), **options)


def test_save_refuses_a_folder_of_something_else(segmenter, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="choose another folder"):
        segmenter.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_half_precision_is_stored_and_the_model_stays_as_it_was(segmenter, tmp_path):
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    segmenter.save_pretrained(tmp_path / "m", torch.bfloat16)
    assert all(torch.equal(v, before[k]) for k, v in segmenter.state_dict().items())
    assert {t.dtype for t in load_file(tmp_path / "m/decoder/model.safetensors").values()} == {
        torch.bfloat16
    }


def test_bfloat16_answers(scenes):
    half = Segmenter.from_pretrained(dtype="bfloat16", device="cpu")
    assert half(scenes[0].query).status in ("found", "absent", "no_seg")


def test_reading_at_the_token(scenes):
    at = Segmenter.from_pretrained(read="at", device="cpu")
    answer = at(scenes[0].query, force_seg=True)
    assert len(answer.masks) >= 1


def test_push_uploads_what_save_writes(segmenter, monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def create_repo(self, repo_id, **_):
            seen["repo"] = repo_id

        def upload_folder(self, repo_id, folder_path):
            seen["files"] = {
                str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()
            }

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    segmenter.push_to_hub("me/mine")
    assert (
        seen["repo"] == "me/mine"
        and {"settings.yaml", "prompter.safetensors", "backbone/config.json"} <= seen["files"]
    )
