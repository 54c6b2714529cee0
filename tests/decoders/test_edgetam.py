"""EdgeTAM (`decoder: sam2`) against transformers' own forward pass."""

import numpy as np
import pytest
import torch
import transformers as tf

from reasonseg.backbones.speakers.places.reading import Place
from reasonseg.segmenters.drawers import open_drawer

pytest.importorskip("timm", reason="EdgeTAM's trunk is a timm model: pip install timm")
SIDE = 128


def test_a_box_is_drawn_as_by_transformers(tmp_path):
    torch.manual_seed(0)
    trunk = tf.TimmWrapperConfig(
        architecture="repvit_m0_9",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    )
    config = tf.EdgeTamConfig(
        vision_config={
            "backbone_config": trunk, "backbone_channel_list": [384, 192, 96, 48],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2,
                             "iou_head_hidden_dim": 32},
    )  # fmt: skip
    model = tf.EdgeTamModel(config).eval()
    with torch.no_grad():  # fresh weights draw hardly anything
        for weight in model.mask_decoder.parameters():
            weight.mul_(4)
    model.mask_decoder.dynamic_multimask_via_stability = False
    model.save_pretrained(tmp_path)
    drawer = open_drawer(str(tmp_path), "cpu", torch.float32)
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    box = (20.0, 30.0, 100.0, 90.0)
    decoder = drawer.decoder
    with torch.no_grad():
        output = model(
            pixel_values=decoder.pixels.batch([image], "cpu", torch.float32),
            input_boxes=torch.tensor([[box]]),
            multimask_output=False,
        )
        prompt = decoder.places([], [box], image.shape[:2])
        logits, scores = decoder.decode(decoder.encode([image]), torch.tensor([0]), prompt)
    wanted = output.pred_masks[0, 0]
    assert wanted.std() > 1e-3
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(scores.flatten(), output.iou_scores.flatten(), atol=1e-5, rtol=1e-3)
    drawn = drawer.places(image, [Place(box)])
    assert drawn.masks.shape == (1, SIDE, SIDE)
