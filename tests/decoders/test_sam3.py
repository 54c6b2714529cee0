"""SAM 3: the concept segmenter against its own model, and its tracker as a decoder of boxes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_vlms import tokenizer

from reasonseg import InputError
from reasonseg.backbones.speakers.places.reading import Place
from reasonseg.decoders import sam3
from reasonseg.decoders.sam2 import Config as Sam2Config
from reasonseg.decoders.sam2 import marked
from reasonseg.segmenters.drawers import open_drawer

SIDE = 112
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)


def vision(kind):
    vit = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }
    grid = SIDE // 14
    return {
        "model_type": kind,
        "backbone_config": vit,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random SAM 3 with its real processor."""
    torch.manual_seed(0)
    tok = tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    text = {
        "model_type": "clip_text_model",
        **small,
        "num_hidden_layers": 1,
        "vocab_size": len(tok),
        "projection_dim": 16,
        "max_position_embeddings": 32,
    }
    config = tf.Sam3Config(
        vision_config=vision("sam3_vision_model"),
        text_config=text,
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    path = tmp_path_factory.mktemp("sam3")
    tf.Sam3Model(config).save_pretrained(path)
    images = tf.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})
    tf.Sam3Processor(images, tok).save_pretrained(path)
    return path


def test_a_phrase_gives_what_the_model_gives(folder):
    found = sam3.load(folder, torch.device("cpu"), torch.float32)
    found.threshold = 0.0
    got = found.find(IMAGE, "a dog")
    inputs = found.processor(images=IMAGE, text="a dog", return_tensors="pt")
    with torch.no_grad():
        out = found.model(**inputs)
    theirs = found.processor.post_process_instance_segmentation(
        out, threshold=0.0, target_sizes=[(60, 90)]
    )[0]
    order = torch.argsort(-theirs["scores"], stable=True)
    assert np.allclose(got.scores, theirs["scores"][order].numpy(), atol=1e-6)
    assert np.array_equal(got.masks, theirs["masks"][order].bool().numpy())
    assert np.isclose(got.presence, float(out.presence_logits.sigmoid().max()))


def test_an_image_is_encoded_once_for_all_phrases(folder):
    found = sam3.load(folder, torch.device("cpu"), torch.float32)
    for phrase in ("a dog", "a cat"):
        found.find(IMAGE, phrase)
    found.find(IMAGE, boxes=[(10, 10, 40, 40)])
    assert found.looks == 1
    found.find(IMAGE[::-1].copy(), "a dog")
    assert found.looks == 2
    with pytest.raises(InputError, match="phrase or a box"):
        found.find(IMAGE)


def test_it_draws_for_models_that_speak(folder):
    drawer = open_drawer(str(folder), "cpu", torch.float32)
    assert drawer.reads
    drawer.concepts.threshold = 0.0
    drawn = drawer.places(
        IMAGE, [Place((10.0, 10.0, 40.0, 40.0), (), "dog"), Place(None, ((5.0, 5.0, 1),), "")]
    )
    assert drawn.masks.shape == (2, 60, 90) and drawn.labels == ["dog", ""]
    assert drawer.phrase(IMAGE, "a dog").masks.shape[1:] == (60, 90)
    drawer.concepts.threshold = 1.1
    assert drawer.phrase(IMAGE, "a dog").absent


def test_its_tracker_is_a_decoder(tmp_path):
    grid = SIDE // 14
    config = tf.Sam3TrackerConfig(
        vision_config=vision("sam3_vision_model"),
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 14},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )
    tf.Sam3TrackerModel(config).save_pretrained(tmp_path)
    drawer = open_drawer(str(tmp_path), "cpu", torch.float32)
    drawn = drawer.places(IMAGE, [Place((10.0, 10.0, 40.0, 40.0))])
    assert drawn.masks.shape == (1, 60, 90) and drawer.decoder.side == 4 * grid
    assert not drawer.reads


def test_a_fresh_sam2_has_one_encoding_of_places():
    decoder = Sam2Config.example().build()
    model = decoder.model
    assert torch.equal(
        model.shared_image_embedding.positional_embedding,
        model.prompt_encoder.shared_embedding.positional_embedding,
    )


def test_marks_are_drawn_into_the_dense_prompt():
    box = marked([], [(64.0, 32.0, 256.0, 128.0)], torch.tensor([0.25, 0.25]), 128)
    assert (box[8:32, 16:64] == 10).all() and (box > 0).sum() == 24 * 48 and box.min() == -10
    point = marked([(256.0, 256.0, 1), (100.0, 100.0, 0)], [], torch.tensor([0.25, 0.25]), 128)
    assert point[64, 64] > 9 and point[25, 25] < -9 and abs(point[0, 127]) < 0.1
    plain = Sam2Config.example()
    with_marks = replace(plain, marks=True)
    assert plain.build().places([], [(1, 1, 9, 9)], (20, 20)).dense is None
    prompt = with_marks.build().places([], [(1, 1, 9, 9)], (20, 20))
    assert prompt.dense is not None and prompt.dense.shape == (1, 1, 16, 16)
