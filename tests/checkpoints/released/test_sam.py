"""Original segment-anything weights against segment-anything's own outputs
(../shared/oracle/B_sam).
"""

import numpy as np
import pytest
import torch
from parity import close, oracle
from PIL import Image

from reasonseg import Segmenter
from reasonseg.checkpoints.released.sam import config_of, decoder_from
from reasonseg.errors import InputError
from reasonseg.nn.prompt import Prompt

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def io():
    return np.load(oracle("B_sam", "io.npz"))


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    """The oracle's weights as a .pth."""
    stored = np.load(oracle("B_sam", "state_dict.npz"))
    file = tmp_path_factory.mktemp("sam") / "any-name.pth"
    torch.save({k: torch.from_numpy(stored[k]).float() for k in stored}, file)
    return file


@pytest.fixture(scope="module")
def decoder(pth):
    return decoder_from(str(pth), CPU, torch.float32)[1].eval()


@pytest.fixture(scope="module")
def encoded(decoder):
    image = np.array(Image.open(oracle("B_sam", "image.png")).convert("RGB"))
    with torch.inference_mode():
        return image, decoder.encode([image])


def test_sizes_are_read_off_the_tensors(decoder):
    vision = decoder.model.config.vision_config
    assert (vision.num_attention_heads, vision.global_attn_indexes, vision.window_size) == (
        2,
        [1],
        7,
    )
    assert (vision.image_size, vision.num_hidden_layers) == (256, 3)


def test_preprocessing_and_encoder(decoder, encoded, io):
    image, features = encoded
    close("B image", "SAM input", decoder.pixels(image)[None], io["preprocessed"], atol=0.02)
    close("B image", "SAM image embedding", features.embedding, io["image_embedding"])


def test_tokens_straight_into_the_decoder(decoder, encoded, io):
    image, features = encoded
    prompt, of = (
        Prompt(torch.from_numpy(io["sparse_a"])),
        torch.zeros(len(io["sparse_a"]), dtype=torch.long),
    )
    with torch.inference_mode():
        logits, scores = decoder.decode(features, of, prompt)
    close("B tokens", "low-resolution logits", logits, io["a_low_single"][:, 0])
    close("B tokens", "predicted IoU", scores, io["a_iou_single"][:, 0])
    close(
        "B tokens",
        "mask logits, original size",
        decoder.restore(logits, image.shape[:2]),
        io["a_full_single"][:, 0],
    )


@pytest.mark.parametrize("what", ["points", "box", "points_box"])
def test_points_and_boxes(decoder, encoded, io, what):
    image, features = encoded
    points = [(*map(float, p), int(on)) for p, on in zip(io["points"], io["labels"], strict=True)]
    box = tuple(map(float, io["box"]))
    given = {"points": (points, []), "box": ([], [box]), "points_box": (points, [box])}[what]
    with torch.inference_mode():
        prompt = decoder.places(*given, image.shape[:2])
        logits, scores = decoder.decode(features, torch.zeros(1, dtype=torch.long), prompt)
    if f"c_{what}_sparse" in io:
        close(f"B {what}", "prompt tokens", prompt.tokens, io[f"c_{what}_sparse"])
    close(f"B {what}", "low-resolution logits", logits, io[f"c_{what}_single_low"])
    close(f"B {what}", "predicted IoU", scores, io[f"c_{what}_single_iou"])
    close(
        f"B {what}",
        "mask logits, original size",
        decoder.restore(logits, image.shape[:2]),
        io[f"c_{what}_single_full"],
    )


def test_a_mask_as_dense_prompt(decoder, encoded, io):
    image, features = encoded
    points = [(*map(float, p), int(on)) for p, on in zip(io["points"], io["labels"], strict=True)]
    with torch.inference_mode():
        tokens = decoder.places(points, [], image.shape[:2]).tokens
        prompt = Prompt(tokens, torch.from_numpy(io["mask_input"])[None])
        logits, _ = decoder.decode(features, torch.zeros(1, dtype=torch.long), prompt)
    close("B mask as prompt", "low-resolution logits", logits, io["c_mask_single_low"])


def test_it_replaces_a_models_decoder(pth, picture, tmp_path):
    """A model of one's own with another SAM: the widths must agree."""
    with pytest.raises(InputError, match="width 160, the decoder takes 256"):
        Segmenter.from_pretrained(sam=str(pth))


def test_hub_folders_are_decoders_too(decoder, tmp_path):
    decoder.save(tmp_path / "sam")
    kind, again = decoder_from(str(tmp_path / "sam"), CPU, torch.float32)
    assert kind == "sam"
    for (name, a), (_, b) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_sizes_of_the_three_released_models(monkeypatch):
    """vit_b, vit_l and vit_h as segment-anything builds them, on the meta device: every tensor
    finds its place.
    """
    registry = pytest.importorskip("segment_anything").sam_model_registry
    from reasonseg.checkpoints.released import sam
    from reasonseg.nn.meta_init import WeightFiller, meta_init

    for name, expected in {
        "vit_b": (768, 12, 12),
        "vit_l": (1024, 24, 16),
        "vit_h": (1280, 32, 16),
    }.items():
        with torch.device("meta"):
            original = registry[name]().state_dict()
        config = config_of(list(original), lambda k, o=original: tuple(o[k].shape))
        vision = config.vision_config
        assert (
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
        ) == expected
        assert vision.window_size == 14 and len(vision.global_attn_indexes) == 4
        with meta_init():
            decoder = sam.meta_sam(list(original), lambda k, o=original: tuple(o[k].shape))
        filling = WeightFiller(decoder, torch.device("meta"), torch.float32, "meta")
        for key, value in original.items():
            filling.put([f"model.{ours}" for ours in sam.renamed(key, 3)], value, key)
        assert not filling.problems and filling.filled == set(filling.parameters)


def test_a_checkpoint_that_is_no_sam(tmp_path):
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="no segment-anything checkpoint"):
        decoder_from(str(tmp_path / "x.pth"), CPU, torch.float32)


def test_missing_and_left_over_keys_stop_the_load(pth, tmp_path):
    weights = torch.load(pth, weights_only=True)
    weights["surplus.weight"] = weights.pop("mask_decoder.iou_token.weight")
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(InputError) as error:
        decoder_from(str(tmp_path / "x.pth"), CPU, torch.float32)
    assert "surplus.weight" in str(error.value) and "iou_token" in str(error.value)
    decoder_from(
        str(tmp_path / "x.pth"), CPU, torch.float32, ("surplus", "model.mask_decoder.iou_token")
    )
