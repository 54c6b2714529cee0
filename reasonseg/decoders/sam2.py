"""SAM 2, EdgeTAM and the tracker of SAM 3 from transformers as mask decoders of single images;
their memory for video is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, EdgeTamModel, Sam2Config, Sam2Model, Sam3TrackerModel

from reasonseg.decoders.base import SamDecoderBase, Takes
from reasonseg.errors import InputError
from reasonseg.nn import efficientnet_lite as _registered  # noqa: F401  # a tower by its name
from reasonseg.nn.features import Features
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.pretrained import from_folder, local_folder
from reasonseg.nn.prompt import Prompt
from reasonseg.structures.query import Box, Point

MODELS = {
    "sam2": Sam2Model,
    "sam2_video": Sam2Model,
    "edgetam": EdgeTamModel,
    "edgetam_video": EdgeTamModel,
    "sam3_tracker": Sam3TrackerModel,
    "sam3_tracker_video": Sam3TrackerModel,
}
SURE, NEAR = 10.0, 0.02  # logits of marks; how far a point reaches, as a share of the side


@dataclass(frozen=True)
class Config:
    """`source` (folder or hub id) holds weights to start from; without it they start fresh, from
    `network`, a transformers `Sam2Config` as a dict, and `pixels`. A model that was saved reads
    none of them. `marks`: boxes and points are also drawn into the dense prompt, for decoders that
    were trained so. `best`: of the three masks of an unclear prompt the one with the highest
    predicted IoU, instead of the one of a clear prompt. `blanks`: so many "not a point" tokens
    stand before a token that is alone (both as in Sa2VA).
    """

    takes: ClassVar[Takes] = ("tokens",)
    model_types: ClassVar[tuple[str, ...]] = tuple(MODELS)

    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    marks: bool = False
    best: bool = False
    blanks: int = 0

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
        # and starts these 50 times too tame: a corner could not be told from a point
        for part in (model.prompt_encoder.point_embed, model.prompt_encoder.not_a_point_embed):
            nn.init.normal_(part.weight, std=0.7)
        pixels = ImageProcessor(**{"size": size, "aspect": "squash", **self.pixels})
        return Sam2Decoder(model, pixels, self)

    def load(self, folder: Path, allow: Sequence[str] = (), **options: Any) -> Sam2Decoder:
        """A decoder from a folder that `Sam2Model.save_pretrained` wrote; `allow` as in
        `weights.from_folder`.
        """
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind not in MODELS:
            raise InputError(
                f"{folder} holds a {kind!r} model; decoder sam2 takes {', '.join(MODELS)}"
            )
        model = from_folder(MODELS[kind], folder, allow, **options)
        size = model.config.prompt_encoder_config.image_size
        pixels = ImageProcessor.load(folder, size=size, aspect="squash")
        return Sam2Decoder(model, pixels, self)

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

    def __init__(self, model: Any, pixels: ImageProcessor, config: Config | None = None):
        super().__init__(model, pixels)
        self.config = config or Config()
        # In evaluation SAM 2 may take another mask token where the first looks unstable; training
        # never does, so we don't.
        model.mask_decoder.dynamic_multimask_via_stability = False

    def places(
        self, points: Sequence[Point], boxes: Sequence[Box], size: tuple[int, int]
    ) -> Prompt:
        """As `Decoder.places`; with `marks` a dense prompt beside the tokens."""
        prompt = super().places(points, boxes, size)
        if not self.config.marks:
            return prompt
        height, width = self.pixels.resized(size)
        scale = torch.tensor([width / size[1], height / size[0]]) * self.side / self.pixels.size
        drawn = marked(points, boxes, scale, self.side)
        return Prompt(prompt.tokens, drawn[None, None].to(self._weight))

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
        # SAM 3 has one level more than it uses; as in transformers, the rest is left out
        maps = [
            f.permute(1, 2, 0).reshape(len(images), -1, *size)
            for f, size in zip(flat, sizes, strict=False)
        ]
        return Features(maps[-1], tuple(maps[:-1]))

    def draw(self, features, positions, tokens, dense):
        """Runs the mask decoder, one mask a prompt."""
        if self.config.blanks and tokens.shape[2] == 1:
            blank = self.model.prompt_encoder.not_a_point_embed.weight.to(tokens)
            before = blank.expand(*tokens.shape[:2], self.config.blanks, -1)
            tokens = torch.cat([before, tokens], 2)
        masks, scores = self.model.mask_decoder(
            image_embeddings=features.embedding,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense,
            multimask_output=self.config.best,
            high_resolution_features=list(features.more),
        )[:2]
        if not self.config.best:
            return masks, scores
        chosen = scores.argmax(-1, keepdim=True)
        index = chosen[..., None, None].expand(-1, -1, -1, *masks.shape[-2:])
        return masks.gather(2, index), scores.gather(2, chosen)


def marked(
    points: Sequence[Point], boxes: Sequence[Box], scale: torch.Tensor, side: int
) -> torch.Tensor:
    """Boxes and points as logits `[side, side]`: `SURE` inside boxes and `-SURE` outside; without
    boxes 0. Around points on the object they rise to `SURE`, around others they fall to `-SURE`.

    `scale` `[2]` brings x and y into the frame of the logits.
    """
    at = torch.arange(side) + 0.5
    drawn = torch.zeros(side, side)
    if boxes:
        inside = torch.zeros(side, side, dtype=torch.bool)
        for box in boxes:
            x0, y0, x1, y1 = (torch.tensor(box).reshape(2, 2) * scale).flatten().tolist()
            inside |= ((at > y0) & (at < y1))[:, None] & ((at > x0) & (at < x1))[None]
        drawn = torch.where(inside, SURE, -SURE)
    for x, y, on in points:
        px, py = float(x * scale[0]), float(y * scale[1])
        away = (at - py).square()[:, None] + (at - px).square()[None]
        near = torch.exp(-away / (2 * (NEAR * side) ** 2))
        drawn = drawn + near * ((SURE if on else -SURE) - drawn)
    return drawn
