"""SAM 2 from transformers as a mask decoder of single images (its memory for video is not used)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn
from transformers import AutoConfig, Sam2Config, Sam2Model

from reasonseg.decoders.base import SamDecoderBase, Takes
from reasonseg.errors import InputError
from reasonseg.nn import efficientnet_lite as _registered  # noqa: F401  # a tower by its name
from reasonseg.nn.features import Features
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.pretrained import from_folder, local_folder


@dataclass(frozen=True)
class Config:
    """`source` (folder or hub id) holds weights to start from; without it they start fresh, from
    `network`, a transformers `Sam2Config` as a dict, and `pixels`. A model that was saved reads
    none of them.
    """

    takes: ClassVar[Takes] = ("tokens",)
    model_types: ClassVar[tuple[str, ...]] = ("sam2", "sam2_video")

    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def build(self) -> Sam2Decoder:
        """A decoder with the source's weights, or fresh ones."""
        if self.source:
            return self.load(local_folder(self.source))
        config: Any = Sam2Config(**self.network)
        size = config.prompt_encoder_config.image_size
        model = Sam2Model(config)
        # transformers draws two; SAM 2 has one, so that a point is near the pixels where it lies
        place = model.shared_image_embedding.positional_embedding
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(place)
        return Sam2Decoder(
            model, ImageProcessor(**{"size": size, "aspect": "squash", **self.pixels})
        )

    @staticmethod
    def load(folder: Path, allow: Sequence[str] = (), **options: Any) -> Sam2Decoder:
        """A decoder from a folder that `Sam2Model.save_pretrained` wrote; `allow` as in
        `weights.from_folder`.
        """
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind not in ("sam2", "sam2_video"):
            raise InputError(f"{folder} holds a {kind!r} model; decoder sam2 takes sam2")
        model = from_folder(Sam2Model, folder, allow, **options)
        return Sam2Decoder(
            model,
            ImageProcessor.load(
                folder, size=model.config.prompt_encoder_config.image_size, aspect="squash"
            ),
        )

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests."""
        trunk = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "num_attention_heads": 1,
            "image_size": [64, 64],
        }
        trunk |= {
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "global_attention_blocks": [3],
        }
        trunk |= {
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [4, 2, 2, 2],
        }
        trunk |= {"window_positional_embedding_background_size": [4, 4]}
        vision = {
            "backbone_config": trunk,
            "backbone_channel_list": [64, 32, 16, 8],
            "fpn_hidden_size": 16,
        }
        vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
        prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
        masks = {
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        }
        return cls(
            {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": masks}
        )


class Sam2Decoder(SamDecoderBase):
    """SAM 2; its further maps are the high-resolution levels."""

    def __init__(self, model: Sam2Model, pixels: ImageProcessor):
        super().__init__(model, pixels)
        # In evaluation SAM 2 may take another mask token where the first looks unstable; training
        # never does, so we don't.
        model.mask_decoder.dynamic_multimask_via_stability = False

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs; two convolutions of the mask decoder make the finer
        maps.
        """
        return (
            self.model.vision_encoder,
            self.model.mask_decoder.conv_s0,
            self.model.mask_decoder.conv_s1,
        )

    def encode(self, images: list[np.ndarray]) -> Features:
        """Features of uint8 `[h, w, 3]` images, in one batch."""
        weight = self._weight
        encoded = self.model.get_image_features(
            self.pixels.batch(images, weight.device, weight.dtype), return_dict=True
        )
        flat = list(encoded.fpn_hidden_states)  # [h * w, b, c], the coarsest last
        flat[-1] = flat[-1] + self.model.no_memory_embedding
        sizes = self.model.backbone_feature_sizes
        maps = [
            f.permute(1, 2, 0).reshape(len(images), -1, *size)
            for f, size in zip(flat, sizes, strict=True)
        ]
        return Features(maps[-1], tuple(maps[:-1]))

    def draw(self, features, positions, tokens, dense):
        """Runs the mask decoder, one mask a prompt."""
        return self.model.mask_decoder(
            image_embeddings=features.embedding,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            high_resolution_features=list(features.more),
        )[:2]
