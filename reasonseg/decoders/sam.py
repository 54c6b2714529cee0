"""SAM and SAM-HQ from transformers as mask decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, SamConfig, SamHQModel, SamModel

from reasonseg.decoders.base import SamDecoderBase, Takes
from reasonseg.errors import InputError
from reasonseg.nn.features import Features
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.pretrained import from_folder, local_folder

MODELS = {"sam": SamModel, "sam_hq": SamHQModel}


@dataclass(frozen=True)
class Config:
    """`source` (folder or hub id) holds weights to start from; without it they start fresh, from
    `network`, a transformers `SamConfig` as a dict, and `pixels`. A model that was saved reads none
    of them.
    """

    takes: ClassVar[Takes] = ("tokens",)
    model_types: ClassVar[tuple[str, ...]] = ("sam", "sam_hq")  # of transformers, that `load` reads

    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def build(self) -> SamDecoder:
        """A decoder with the source's weights, or fresh ones."""
        if self.source:
            return self.load(local_folder(self.source))
        config: Any = SamConfig(**self.network)
        model = SamModel(config)
        # transformers starts it hidden_size / 2 times too wild: neighbouring points would share
        # nothing
        with torch.no_grad():
            model.shared_image_embedding.positional_embedding.div_(config.vision_config.scale)
        return SamDecoder(
            model, ImageProcessor(**{"size": config.vision_config.image_size, **self.pixels})
        )

    @staticmethod
    def load(folder: Path, allow: Sequence[str] = (), **options: Any) -> SamDecoder:
        """A decoder from a folder that `SamModel.save_pretrained` wrote; `allow` as in
        `weights.from_folder`.
        """
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind not in MODELS:
            raise InputError(
                f"{folder} holds a {kind!r} model; decoder sam takes {' or '.join(MODELS)}"
            )
        model = from_folder(MODELS[kind], folder, allow, **options)
        return SamDecoder(
            model, ImageProcessor.load(folder, size=model.config.vision_config.image_size)
        )

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests."""
        vision = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        }
        vision |= {
            "output_channels": 16,
            "window_size": 0,
            "global_attn_indexes": [0, 1],
            "num_pos_feats": 8,
        }
        prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
        masks = {
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        }
        vision |= {"initializer_range": 0.02}
        return cls(
            {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": masks}
        )


class SamDecoder(SamDecoderBase):
    """SAM; SAM-HQ where the model is one (its further maps are the encoder's early layers)."""

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs."""
        return (self.model.vision_encoder,)

    def encode(self, images: list[np.ndarray]) -> Features:
        """Features of uint8 `[h, w, 3]` images, in one batch."""
        encoder = self.model.vision_encoder
        encoded = encoder(
            self.pixels.batch(images, encoder.pos_embed.device, encoder.pos_embed.dtype)
        )
        early = getattr(encoded, "intermediate_embeddings", None)
        return Features(encoded.last_hidden_state, () if early is None else (early[0],))

    def draw(self, features, positions, tokens, dense):
        """Runs the mask decoder, one mask a prompt."""
        early = (
            {"hq_token_only": False, "intermediate_embeddings": list(features.more)}
            if features.more
            else {}
        )
        return self.model.mask_decoder(
            image_embeddings=features.embedding,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            **early,
        )[:2]
