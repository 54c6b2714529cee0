"""What frozen encoders make of images is computed once, and changes nothing."""

import pytest
import torch
from small_data import pairs

from reasonseg import Segmenter
from reasonseg.datasets.folder import Config
from reasonseg.nn.feature_store import FeatureStore, are_frozen


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    data = Config(str(pairs(tmp_path_factory.mktemp("own") / "shapes", 3))).build()
    return [data[i] for i in range(len(data))]


@pytest.fixture
def model():
    model = Segmenter.from_pretrained(device="cpu")
    for module in (*model.backbone.encoders, *model.decoder.encoders):
        module.requires_grad_(False)
    return model


def counted(monkeypatch, model):
    calls = []
    for part in (model.backbone, model.decoder):
        encode = part.encode
        monkeypatch.setattr(
            part,
            "encode",
            lambda images, encode=encode: calls.append(len(images)) or encode(images),
        )
    return calls


def test_losses_and_gradients_stay(model, samples, tmp_path):
    wanted = model.loss(samples)
    wanted["loss"].backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.feature_store = FeatureStore(tmp_path / "features")
    for _ in range(2):  # written, then read
        found = model.loss(samples)
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, atol=1e-5), name
    found["loss"].backward()
    for name, p in model.named_parameters():
        if name in gradients:
            assert torch.allclose(p.grad, gradients[name], atol=1e-4, rtol=1e-3), name
    assert not any("vision" in name for name in gradients)


def test_each_picture_is_encoded_once_over_runs(model, samples, tmp_path, monkeypatch):
    calls = counted(monkeypatch, model)
    model.feature_store = FeatureStore(tmp_path / "features")
    first = model.loss(samples[:2])["loss"]
    assert calls == [1, 1, 1, 1], "two pictures, two encoders, each alone"
    model.loss(samples)
    assert len(calls) == 6, "three pictures in all"
    model.feature_store = FeatureStore(tmp_path / "features")  # another run
    assert torch.equal(model.loss(samples[:2])["loss"], first) and len(calls) == 6
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 6


def test_other_weights_find_nothing(model, samples, tmp_path, monkeypatch):
    model.feature_store = FeatureStore(tmp_path / "features")
    model.loss(samples[:1])
    calls = counted(monkeypatch, model)
    with torch.no_grad():
        next(model.decoder.encoders[0].parameters()).add_(0.01)
    model.loss(samples[:1])
    assert calls == [1], "only the encoder that changed"


def test_what_is_trained_is_not_kept(model, samples, tmp_path):
    model.feature_store = FeatureStore(tmp_path / "features")
    next(model.decoder.encoders[0].parameters()).requires_grad_(True)
    assert (
        not are_frozen(model.decoder.encoders)
        and are_frozen(model.backbone.encoders)
        and not are_frozen(())
    )
    model.loss(samples[:1])["loss"].backward()
    assert next(model.decoder.encoders[0].parameters()).grad is not None
    assert len(list((tmp_path / "features").iterdir())) == 1
