"""Gives the SAM of a model a larger input image, and so finer masks.

    grow_decoder.py MODEL SIDE OUT

Position embeddings are interpolated.
"""

import argparse
from pathlib import Path

import torch
from transformers import SamConfig, SamModel

from reasonseg import Segmenter
from reasonseg.decoders.sam import SamDecoder
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.training.objectives.base import resampled


def grown(decoder: SamDecoder, side: int) -> SamDecoder:
    """The same weights for images of `side` pixels, a multiple of the patch size."""
    old = decoder.model.config
    tree = old.to_dict()
    for part in ("vision_config", "prompt_encoder_config"):
        tree[part]["image_size"] = side
    tree["prompt_encoder_config"].pop("image_embedding_size", None)
    model = SamModel(
        SamConfig(
            **{
                k: tree[k]
                for k in ("vision_config", "prompt_encoder_config", "mask_decoder_config")
            }
        )
    )
    weights = decoder.model.state_dict()
    positions = weights["vision_encoder.pos_embed"]
    grid = side // old.vision_config.patch_size
    flat = resampled(positions.flatten(1, 2), grid)
    weights["vision_encoder.pos_embed"] = flat.unflatten(1, (grid, grid))
    model.load_state_dict(weights)
    return SamDecoder(
        model, ImageProcessor(side, decoder.pixels.mean, decoder.pixels.std, decoder.pixels.aspect)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("side", type=int)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with torch.no_grad():
        segmenter = Segmenter.from_pretrained(options.model, dtype="float32", device="cpu")
        segmenter.decoder = grown(segmenter.decoder, options.side)
        segmenter.save_pretrained(options.out)
    print(f"images of {options.side} pixels, masks of {segmenter.decoder.side}, in {options.out}")
