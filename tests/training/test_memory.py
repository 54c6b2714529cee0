"""What a model takes of a GPU, from its configs alone."""

import pytest
import torch
import torch.nn.functional as F

from reasonseg import InputError, Segmenter
from reasonseg.cli.main import main
from reasonseg.nn.pretrained import EMBEDDED
from reasonseg.training.memory import Living, card, fused_attention, parts_of, peak_of, plan


def step(model: torch.nn.Module, states: torch.Tensor) -> None:
    (model(states).square().sum() * 2).backward()


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 64)
    )


def test_what_lives_is_what_torch_allocates():
    """The count, against the events of torch's own allocator, of a forward and backward pass on
    the CPU.
    """
    model, states = network(), torch.randn(512, 64)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step(model, states)
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    for p in model.parameters():
        p.grad = None
    with Living() as living:
        step(model, states)
    assert living.peak == pytest.approx(peak, rel=0.05) and peak > 512 * 4096 * 4


def test_without_values_it_is_the_same():
    model, states = network(), torch.randn(512, 64)
    with Living() as real:
        step(model, states)
    model, states = network().to("meta"), states.to("meta")
    assert peak_of(lambda: step(model, states)) == real.peak


def test_fused_attention_lays_out_no_products():
    states = torch.empty(1, 4, 2048, 32, device="meta", requires_grad=True)
    attend = F.scaled_dot_product_attention
    held = peak_of(lambda: F.scaled_dot_product_attention(states, states, states).sum().backward())
    assert held < 8 * states.numel() * 4 < 4 * 2048 * 2048 * 4
    with fused_attention():
        assert attend is not F.scaled_dot_product_attention
    assert attend is F.scaled_dot_product_attention


def test_weights_are_those_of_the_model(segmenter):
    parts = parts_of(str(EMBEDDED))
    real = sum(p.numel() for m in (segmenter.backbone, segmenter.decoder) for p in m.parameters())
    assert (
        parts.weights(2.0) == pytest.approx(2 * real, rel=1e-4)
        and parts.patches == segmenter.backbone.patches
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantized_weights_take_what_bitsandbytes_takes(kind):
    pytest.importorskip("bitsandbytes")
    model = Segmenter.from_pretrained(device="cpu", dtype="bfloat16", quantization=kind)
    tensors = [t for m in (model.backbone, model.decoder) for t in m.parameters()]
    held = sum(t.numel() * t.element_size() for t in tensors)
    states = [s for t in tensors if (s := getattr(t, "quant_state", None)) is not None]
    held += sum(s.absmax.numel() * s.absmax.element_size() for s in states)
    parts = parts_of(str(EMBEDDED))
    from reasonseg.training.memory import STORED

    assert parts.weights(STORED[kind]) == pytest.approx(held, rel=0.02)


def test_lisa():
    """7 billion parameters in 16 bit, 4 bit a quarter of most of it, and adapters far below the
    whole.
    """
    rows = {row["precision"]: row for row in plan("lisa-7b")}
    assert rows["bfloat16"]["weights"] == pytest.approx(14.35, abs=0.05)
    assert rows["nf4"]["weights"] < 0.42 * rows["bfloat16"]["weights"]
    for row in rows.values():
        assert row["weights"] + 0.6 < row["answer"] < row["lora"] < row["answer"] + 3
    assert rows["bfloat16"]["whole"] > 16 * 6.4e9 / 2**30 and rows["nf4"]["whole"] is None
    assert card(rows["bfloat16"]["answer"]) == "24 GB" and card(10_000) == "more than 180 GB"


def test_the_command(capsys, tmp_path):
    assert main(["doctor", "--plan", str(EMBEDDED)]) == 0
    assert "8 GB" in capsys.readouterr().out
    assert main(["doctor", "--plan", str(tmp_path)]) == 2
    assert "lisa-7b" in capsys.readouterr().err
    with pytest.raises(InputError, match="neither a file or folder nor a hub id"):
        plan("lisa-8b")


def test_sam2_and_other_backbones(tmp_path):
    """A model of the two newer rooms, as the package saves it."""
    from reasonseg.backbones.chat_vlm import Config as ChatVlm
    from reasonseg.config.model import ModelSettings
    from reasonseg.config.schema import Kind
    from reasonseg.decoders.sam2 import Config as Sam2
    from reasonseg.prompters.seg_token import Config as SegToken

    parts = (
        Kind("sam2", Sam2.example()),
        Kind("chat_vlm", ChatVlm.example()),
        Kind("seg_token", SegToken()),
    )
    Segmenter.build(ModelSettings(*parts)).save_pretrained(tmp_path / "model")
    rows = plan(str(tmp_path / "model"))
    assert 0.6 < rows[0]["answer"] < 1.5
