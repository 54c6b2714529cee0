"""What SAM, SAM-HQ and SAM 2 share as decoders: features of a batch, frames, points, boxes and dense prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reasonseg.nn.image_processor import Pixels
from reasonseg.nn.prompt import Prompt


@dataclass
class Features:
    """Encoded images: `embedding` `[b, d, g, g]` and further maps `[b, ...]` that only their own decoder understands."""

    embedding: torch.Tensor
    more: tuple[torch.Tensor, ...] = ()

    def __getitem__(self, index) -> Features:
        if isinstance(
            index, torch.Tensor
        ):  # the gradient of plain indexing adds up in any order, this one's always alike
            return Features(self.embedding.index_select(0, index), tuple(m.index_select(0, index) for m in self.more))
        return Features(self.embedding[index], tuple(m[index] for m in self.more))

    def clone(self) -> Features:
        """A copy with storage of its own."""
        return Features(self.embedding.clone(), tuple(m.clone() for m in self.more))

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.embedding.nbytes + sum(m.nbytes for m in self.more)

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """Several as one batch."""
        more = zip(*(p.more for p in parts), strict=True)
        return Features(torch.cat([p.embedding for p in parts]), tuple(torch.cat(m) for m in more))


class SamDecoderBase(nn.Module):
    """Image -> features -> mask logits, prompted by tokens, points, boxes or a previous mask.

    A kind gives `encode` and `draw`; `model` is its transformers model.
    """

    takes = ("tokens",)

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

    @property
    def side(self) -> int:
        """Height and width of its low-resolution logits."""
        return 4 * self.model.prompt_encoder.image_embedding_size[0]

    @property
    def _weight(self) -> torch.Tensor:
        return self.model.mask_decoder.iou_token.weight

    def encode(self, images: list[np.ndarray]) -> Features:
        """Features of uint8 `[h, w, 3]` images, in one batch."""
        raise NotImplementedError

    def draw(self, features: Features, positions: torch.Tensor, tokens: torch.Tensor, dense: torch.Tensor) -> tuple:
        """(masks `[n, 1, 1, side, side]`, scores `[n, 1, 1]`) of n prompts, each with its own features."""
        raise NotImplementedError

    def decode(self, features: Features, of: torch.Tensor, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[n, side, side]` and predicted IoU `[n]`; mask i belongs to image `of[i]` of the features."""
        n, encoder, dtype = len(prompt), self.model.prompt_encoder, features.embedding.dtype
        if n == 0:
            return features.embedding.new_zeros(0, self.side, self.side), features.embedding.new_zeros(0)
        if prompt.dense is None:
            dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(n, -1, *features.embedding.shape[-2:])
        else:
            dense = encoder.mask_embed(prompt.dense.to(self._weight.dtype))
        positions = self.model.get_image_wide_positional_embeddings().to(dtype).expand(n, -1, -1, -1)
        masks, scores = self.draw(features[of], positions, prompt.tokens[:, None].to(dtype), dense.to(dtype))
        return masks[:, 0, 0], scores[:, 0, 0]

    def restore(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits `[n, side, side]` in the frame of an image of `size`: float32 `[n, h, w]` (SAM's two-step resize)."""
        if not len(logits):
            return logits.new_zeros(0, *size, dtype=torch.float32)
        height, width = self.pixels.resized(size)
        frame = (self.pixels.size, self.pixels.size)
        corners = self.pixels.enlarged > 0  # a picture enlarged by its corners comes back by them
        logits = F.interpolate(logits[:, None].float(), frame, mode="bilinear", align_corners=corners)
        logits = logits[..., :height, :width]
        if (height, width) != tuple(size):
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits[:, 0]

    def places(self, points: list, boxes: list, size: tuple[int, int]) -> Prompt:
        """Points `(x, y, on)` and boxes in pixels of an image of `size` as the tokens of one mask, `[1, k, d]`."""
        height, width = self.pixels.resized(size)
        scale = torch.tensor([width / size[1], height / size[0]], device=self._weight.device)
        scale = scale * (self.pixels.enlarged or self.pixels.size) / self.pixels.size
        corners = [torch.tensor(b, dtype=torch.float32, device=scale.device).reshape(2, 2) * scale for b in boxes]
        tokens = [self._embed(input_boxes=c.reshape(1, 1, 4)) for c in corners]
        if points:
            spots = torch.tensor([[p[:2] for p in points]], dtype=torch.float32, device=scale.device) * scale
            labels = torch.tensor([[p[2] for p in points]], device=scale.device)
            beside = {"input_boxes": corners[0].reshape(1, 1, 4)} if boxes else {}  # points alone get a padding point
            tokens[:1] = [self._embed(input_points=spots[None], input_labels=labels[None], **beside)]
        return Prompt(torch.cat(tokens, 2)[0].to(self._weight.dtype))

    def _embed(self, **places) -> torch.Tensor:
        blank = dict.fromkeys(("input_points", "input_labels", "input_boxes", "input_masks"))
        return self.model.prompt_encoder(**{**blank, **places})[0]

    def dense(self, mask: np.ndarray) -> torch.Tensor:
        """A mask bool `[h, w]` as dense prompt `[1, 1, side, side]`: logits of +-10 in the network's frame."""
        logits = torch.from_numpy(mask).to(self._weight.device, torch.float32)[None, None] * 20 - 10
        logits = F.interpolate(logits, self.pixels.resized(mask.shape), mode="bilinear", antialias=True)
        frame = self.pixels.size
        logits = F.pad(logits, (0, frame - logits.shape[-1], 0, frame - logits.shape[-2]), value=-10.0)
        return F.interpolate(logits, (self.side, self.side), mode="bilinear", antialias=True).to(self._weight.dtype)

    def save(self, folder: Path) -> None:
        """Writes an ordinary transformers folder."""
        self.model.save_pretrained(folder)
        self.pixels.save(folder)
