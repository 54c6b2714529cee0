"""Stages of an answer beside what the hardware allows."""

import pytest
import torch

from reasonseg.config import kinds as config
from reasonseg.training.memory import LISA
from scripts import roofline

STAGES = {
    "pictures prepared",
    "vision tower",
    "image encoder",
    "prompt read",
    "question read",
    "mask drawn",
    "mask at full size",
    "a word, of 4",
}


def looked_at(found):
    assert set(found["stages"]) == STAGES and set(found["answers"]) == {"first answer", "follow-up"}
    assert found["hardware"]["rate"] > 0 < found["hardware"]["bandwidth"]
    for name in ("vision tower", "image encoder", "prompt read"):
        row = found["stages"][name]
        assert row["times the floor"] == pytest.approx(row["seconds"] / row["floor"])
    once = sum(
        found["stages"][name]["floor"] for name in ("vision tower", "image encoder", "prompt read")
    )
    apart = found["answers"]["first answer"]["floor"] - found["answers"]["follow-up"]["floor"]
    assert apart == pytest.approx(once - found["stages"]["question read"]["floor"])


def test_the_embedded_model(segmenter):
    looked_at(roofline.stages(segmenter, 4, 1))


def test_random_weights_of_a_lisa(monkeypatch):
    torch.manual_seed(0)

    def small(sizes):
        assert sizes == LISA["lisa-7b"]
        built = [
            config.config_class(*room).example().build()
            for room in (("backbones", "llava"), ("decoders", "sam"))
        ]
        return built[0].model, built[1].model

    monkeypatch.setattr(roofline, "lisa_network", small)
    segmenter = roofline.random_lisa("lisa-7b", torch.device("cpu"), torch.float32)
    looked_at(roofline.stages(segmenter, 4, 1))
