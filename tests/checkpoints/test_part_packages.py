"""Pretrained parts of pip packages: read right, and refused where they are missing or altered."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonseg import InputError, Query, Segmenter
from reasonseg.checkpoints import delta, folder, part_packages
from reasonseg.checkpoints.part_packages import INSTALL, LANGUAGE, TOWER
from reasonseg.nn.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, stages
from reasonseg.nn.gguf import Gguf


def test_the_tower_equals_its_layers_with_batch_norms():
    """The first block computed from the stored weights, batch norms apart."""
    stored = torch.load(TOWER.checked(), weights_only=True)
    tower = EfficientNetLite(EfficientNetLiteConfig()).eval()
    tower.load_state_dict(part_packages.tower_weights())
    x = torch.randn(1, 3, 64, 64)

    def normed(value, name):
        return torch.nn.functional.batch_norm(
            value, stored[f"{name}.running_mean"], stored[f"{name}.running_var"],
            stored[f"{name}.weight"], stored[f"{name}.bias"], eps=1e-3,
        )  # fmt: skip

    conv = torch.nn.functional.conv2d
    y = conv(torch.nn.functional.pad(x, (0, 1, 0, 1)), stored["_conv_stem.weight"], stride=2)
    y = normed(y, "_bn0").clamp(0, 6)
    y = conv(y, stored["_blocks.0._depthwise_conv.weight"], padding=1, groups=32)
    y = normed(y, "_blocks.0._bn1").clamp(0, 6)
    y = normed(conv(y, stored["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    with torch.no_grad():
        ours = tower.stages[0](tower.stem(x).clamp(0, 6))
        out = tower(x)
    assert torch.allclose(ours, y, atol=1e-4)
    sizes = [tuple(m.shape[1:]) for m in out.intermediate_hidden_states]
    assert sizes == [(16, 16, 24), (8, 8, 48), (4, 4, 120), (2, 2, 1632)]
    assert out.hidden_states[-1].shape == (1, 4, tower.config.hidden_size)


def test_lite2_has_the_channels_of_its_paper():
    assert [c for *_, c in stages(1.1, 1.2)] == [16, 24, 48, 88, 120, 208, 352]
    assert [r for r, *_ in stages(1.1, 1.2)] == [1, 3, 3, 4, 4, 5, 1]


def test_the_language_model_speaks_english():
    from transformers import LlamaConfig, LlamaForCausalLM

    weights, metadata = part_packages.language_weights()
    tokenizer = part_packages.language_tokenizer(metadata)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        rope_theta=100000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.load_state_dict(weights, assign=True)
    model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"


def test_the_tokenizer_loses_nothing():
    metadata = Gguf.open(LANGUAGE.checked()).metadata
    tokenizer = part_packages.language_tokenizer(metadata, ("<SEG>",))
    for text in ("Hello, world! 1234", "  naïve café\n\tдом 🐕", "the cup <SEG>.", ""):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert (
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            == text
        )
    assert tokenizer.convert_tokens_to_ids("<SEG>") == 49152
    assert len(tokenizer.encode("2026", add_special_tokens=False)) == 4  # digits one by one


def test_missing_and_altered_packages_are_one_line(tmp_path, monkeypatch):
    gone = replace(TOWER, module="no_such_package_at_all")
    with pytest.raises(InputError, match="is not installed; run: pip install") as caught:
        gone.checked()
    assert INSTALL in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="bytes, not 5"):
        replace(TOWER, size=5).checked()
    with pytest.raises(InputError, match="were altered"):
        replace(TOWER, sha256="0" * 64).checked()
    with pytest.raises(InputError, match="lacks its file"):
        replace(TOWER, file="other.pth").checked()


def test_without_packages_tiny_answers_and_says_so(monkeypatch):
    monkeypatch.delenv("REASONSEG_MODEL", raising=False)
    monkeypatch.setattr(part_packages, "missing", lambda: [TOWER])
    name, remark = folder.default_model()
    assert name == "tiny" and TOWER.name in remark and "pip install" in remark
    assert "pip install" in Segmenter.from_pretrained().settings.notice
    monkeypatch.setattr(part_packages, "missing", lambda: [])
    assert folder.default_model() == ("photo", "")
    monkeypatch.setenv("REASONSEG_MODEL", "tiny-seggpt")
    assert folder.default_model() == ("tiny-seggpt", "")


def test_a_score_is_never_of_another_model_than_the_default(monkeypatch, capsys):
    from reasonseg.cli.main import main

    monkeypatch.delenv("REASONSEG_MODEL", raising=False)
    monkeypatch.setattr(part_packages, "missing", lambda: [TOWER])
    assert main(["eval", "scenes", "--limit", "1"]) == 2
    assert "pip install" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bare():
    """The model over packages before its training."""
    return Segmenter.from_pretrained("photo-parts", device="cpu")


def test_the_parts_make_a_whole_model(bare):
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    answers = bare.batch(
        [Query(image, "what?"), Query(image, points=[(5, 5, 1)])], force_seg=True, max_new_tokens=4
    )
    assert all(a.masks.shape == (1, 90, 120) for a in answers)
    assert bare.capabilities.references and bare.capabilities.absent


def test_it_is_the_same_every_time(bare):
    assert Segmenter.from_pretrained("photo-parts", device="cpu").fingerprint == bare.fingerprint


def test_it_is_saved_and_read_again(bare, tmp_path):
    bare.save_pretrained(tmp_path / "whole")
    again = Segmenter.from_pretrained(tmp_path / "whole", device="cpu")
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), again.parameters(), strict=True)
    )


def test_changes_over_packages_know_their_bytes(bare):
    assert bare.origin["source"] == "photo-parts"
    files = delta.weight_files({"source": "photo-parts"})
    assert {f.name for f in files} == {"packages.yaml", TOWER.path().name, LANGUAGE.path().name}
