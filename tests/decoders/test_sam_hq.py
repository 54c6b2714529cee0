"""SAM-HQ through the same decoder file: loaded from a transformers folder, its early features
carried along.
"""

import numpy as np
import torch

from reasonseg.decoders import sam
from reasonseg.nn.prompt import Prompt


@torch.no_grad()
def test_sam_hq_draws_batched_as_one_by_one(tmp_path):
    from transformers import SamHQConfig, SamHQModel

    torch.manual_seed(0)
    network = sam.Config.example().network
    vision = {**network["vision_config"], "num_hidden_layers": 2, "global_attn_indexes": [0, 1]}
    masks = {**network["mask_decoder_config"], "vit_dim": vision["hidden_size"]}
    parts = {
        "vision_config": vision,
        "prompt_encoder_config": network["prompt_encoder_config"],
        "mask_decoder_config": masks,
    }
    SamHQModel(SamHQConfig(**parts)).save_pretrained(tmp_path)
    decoder = sam.Config.load(tmp_path).eval()
    for weight in decoder.model.mask_decoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (40, 64, 3), dtype=np.uint8),
        rng.integers(0, 256, (64, 30, 3), dtype=np.uint8),
    ]
    tokens, of = torch.randn(3, 1, decoder.width), torch.tensor([1, 0, 1])
    features = decoder.encode(images)
    assert features.more
    together, _ = decoder.decode(features, of, Prompt(tokens))
    for m in range(3):
        alone, _ = decoder.decode(
            decoder.encode([images[of[m]]]), torch.tensor([0]), Prompt(tokens[m : m + 1])
        )
        assert torch.allclose(alone[0], together[m], atol=1e-3)
