"""SAM and SAM-HQ from transformers as mask decoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, SamConfig, SamHQModel, SamModel

from reasonseg.errors import InputError
from reasonseg.pixels import Pixels
from reasonseg.prompt import Prompt

MODELS = {"sam": SamModel, "sam_hq": SamHQModel}


@dataclass(frozen=True)
class Config:
    """`network` is a transformers `SamConfig` as a dict, read only where weights start fresh; `pixels` likewise."""

    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)

    def build(self) -> SamDecoder:
        """A decoder with fresh weights."""
        config = SamConfig(**self.network)
        return SamDecoder(SamModel(config), Pixels(**{"size": config.vision_config.image_size, **self.pixels}))

    @staticmethod
    def load(folder: Path, **options) -> SamDecoder:
        """A decoder from a folder that `SamModel.save_pretrained` wrote."""
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind not in MODELS:
            raise InputError(f"{folder} holds a {kind!r} model; decoder sam takes {' or '.join(MODELS)}")
        model = MODELS[kind].from_pretrained(folder, **options)
        return SamDecoder(model, Pixels.load(folder, size=model.config.vision_config.image_size))

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests."""
        vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
        vision |= {"output_channels": 16, "window_size": 0, "global_attn_indexes": [0, 1], "num_pos_feats": 8}
        prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
        masks = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
        vision |= {"initializer_range": 0.02}
        return cls({"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": masks})


@dataclass
class Features:
    """Encoded images: `embedding` `[b, d, g, g]`, what SAM-HQ needs besides, and the `(height, width)` of each image."""

    embedding: torch.Tensor
    sizes: list[tuple[int, int]]
    inner: torch.Tensor | None = None

    def __getitem__(self, i: int) -> Features:
        inner = None if self.inner is None else self.inner[i : i + 1]
        return Features(self.embedding[i : i + 1], self.sizes[i : i + 1], inner)

    @staticmethod
    def join(parts: list[Features]) -> Features:
        """Features of several images in one batch."""
        inner = None if parts[0].inner is None else torch.cat([p.inner for p in parts])
        return Features(torch.cat([p.embedding for p in parts]), [s for p in parts for s in p.sizes], inner)


class SamDecoder(nn.Module):
    """Image -> features -> mask logits, prompted by tokens, points, boxes or a previous mask."""

    def __init__(self, model: nn.Module, pixels: Pixels):
        super().__init__()
        self.model, self.pixels = model, pixels

    @property
    def width(self) -> int:
        """Width d of the prompt tokens it takes."""
        return self.model.config.prompt_encoder_config.hidden_size

    @property
    def encoder(self) -> nn.Module:
        """The image encoder, which may be frozen apart."""
        return self.model.vision_encoder

    def encode(self, images: list[np.ndarray]) -> Features:
        """Features of uint8 `[h, w, 3]` images, in one batch."""
        weight = self.model.mask_decoder.iou_token.weight
        pixels = self.pixels.batch(images, weight.device, self.model.vision_encoder.pos_embed.dtype)
        encoded = self.model.vision_encoder(pixels)
        inner = getattr(encoded, "intermediate_embeddings", None)
        inner = None if inner is None else inner[0]
        return Features(encoded.last_hidden_state.to(weight.dtype), [im.shape[:2] for im in images], inner)

    def decode(self, features: Features, of: torch.Tensor, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution logits `[n, 4g, 4g]` and predicted IoU `[n]`; mask i belongs to image `of[i]` of the features."""
        n, k, _ = prompt.tokens.shape
        encoder, dtype = self.model.prompt_encoder, features.embedding.dtype
        if n == 0:
            side = 4 * features.embedding.shape[-1]
            return features.embedding.new_zeros(0, side, side), features.embedding.new_zeros(0)
        if prompt.dense is None:
            dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(n, -1, *features.embedding.shape[-2:])
        else:
            dense = encoder.mask_embed(prompt.dense.to(dtype))
        positions = self.model.get_image_wide_positional_embeddings().to(dtype)
        extra = {} if features.inner is None else {"intermediate_embeddings": [features.inner[of]], "hq_token_only": False}
        masks, scores = self.model.mask_decoder(
            image_embeddings=features.embedding[of],
            image_positional_embeddings=positions.expand(n, -1, -1, -1),
            sparse_prompt_embeddings=prompt.tokens[:, None].to(dtype),
            dense_prompt_embeddings=dense,
            multimask_output=False,
            **extra,
        )[:2]
        return masks[:, 0, 0], scores[:, 0, 0]

    def restore(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits `[n, 4g, 4g]` in the frame of an image of `size`: float32 `[n, h, w]` (SAM's two-step resize)."""
        if not len(logits):
            return logits.new_zeros(0, *size, dtype=torch.float32)
        height, width = self.pixels.resized(size)
        side = (self.pixels.size, self.pixels.size)
        logits = F.interpolate(logits[:, None].float(), side, mode="bilinear", align_corners=False)
        return F.interpolate(logits[..., :height, :width], size, mode="bilinear", align_corners=False)[:, 0]

    def places(self, points: list, boxes: list, size: tuple[int, int]) -> Prompt:
        """Points `(x, y, on)` and boxes in pixels of an image of `size` as the tokens of one mask, `[1, k, d]`."""
        weight = self.model.mask_decoder.iou_token.weight
        height, width = self.pixels.resized(size)
        scale = torch.tensor([width / size[1], height / size[0]], device=weight.device)
        tokens = []
        if points:
            spots = torch.tensor([[p[:2] for p in points]], dtype=torch.float32, device=weight.device) * scale
            labels = torch.tensor([[p[2] for p in points]], device=weight.device)
            tokens.append(self._embed(input_points=spots[None], input_labels=labels[None]))
        for box in boxes:
            corners = torch.tensor(box, dtype=torch.float32, device=weight.device).reshape(2, 2) * scale
            tokens.append(self._embed(input_boxes=corners.reshape(1, 1, 4)))
        return Prompt(torch.cat(tokens, 2)[0].to(weight.dtype))

    def _embed(self, **places) -> torch.Tensor:
        blank = dict.fromkeys(("input_points", "input_labels", "input_boxes", "input_masks"))
        return self.model.prompt_encoder(**{**blank, **places})[0]

    def dense(self, mask: np.ndarray) -> torch.Tensor:
        """A mask bool `[h, w]` as dense prompt `[1, 1, 4g, 4g]`: logits of +-10 in the network's frame."""
        weight = self.model.mask_decoder.iou_token.weight
        config = self.model.config.prompt_encoder_config
        logits = torch.from_numpy(mask).to(weight.device, torch.float32)[None, None] * 20 - 10
        logits = F.interpolate(logits, self.pixels.resized(mask.shape), mode="bilinear", antialias=True)
        side = self.pixels.size
        logits = F.pad(logits, (0, side - logits.shape[-1], 0, side - logits.shape[-2]), value=-10.0)
        small = 4 * (config.image_size // config.patch_size)
        return F.interpolate(logits, (small, small), mode="bilinear", antialias=True).to(weight.dtype)

    def save(self, folder: Path) -> None:
        """Writes an ordinary transformers folder."""
        self.model.save_pretrained(folder)
        self.pixels.save(folder)
