"""What a decoder is, and what SAM, SAM-HQ and SAM 2 share as decoders.

A decoder encodes images once, then draws mask logits for any number of prompts. One file a kind:
its `Config`, with `build` (fresh weights), `load` (a folder that `save` wrote) and `example` (a
tiny one, for tests), and the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reasonseg.errors import InputError
from reasonseg.nn.features import Features, PatchEncoder
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.prompt import CanvasFrame, Prompt

Takes = tuple[Literal["tokens", "examples"], ...]


class Decoder(Protocol):
    """Image features and prompts to mask logits. `BaseDecoder` implements what kinds may leave
    out.
    """

    takes: Takes
    model: Any
    pixels: ImageProcessor

    @property
    def width(self) -> int:
        """Width d of the prompt tokens it takes; 0 where it takes examples only."""

    @property
    def side(self) -> int:
        """Height and width of its logits."""

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs, by whose weights caches know its features."""

    @property
    def patch_encoder(self) -> PatchEncoder | None:
        """Patch features to compare images by; None where it has none to offer."""

    @property
    def canvas_frame(self) -> CanvasFrame | None:
        """How examples are laid out for it; None where it takes none."""

    def encode(self, images: list[np.ndarray]) -> Features:
        """Features of uint8 `[h, w, 3]` images, in one batch."""

    def decode(
        self, features: Features, image_index: torch.Tensor, prompt: Prompt
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[n, side, side]` and predicted IoU `[n]` of n prompts; mask i belongs to image
        `image_index[i]`.
        """

    def restore(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits `[n, side, side]` in the frame of an image of `size` (height, width): float32
        `[n, h, w]`; above 0 is inside.
        """

    def places(self, points: list, boxes: list, size: tuple[int, int]) -> Prompt:
        """Points `(x, y, on)` and boxes `(x0, y0, x1, y1)` in pixels of an image of `size` as
        one prompt `[1, k, d]`.
        """

    def dense(self, mask: np.ndarray) -> torch.Tensor:
        """A mask bool `[h, w]` as the dense prompt `[1, 1, side, side]` that starts its
        correction.
        """

    def save(self, folder: Path) -> None:
        """Writes an ordinary transformers folder with the preprocessing beside it."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class BaseDecoder(nn.Module):
    """Defaults for what a kind may leave out: patch features, examples, points and boxes,
    saving.
    """

    takes: Takes = ("tokens",)

    def __init__(self, model: nn.Module, pixels: ImageProcessor):
        super().__init__()
        self.model: Any = model
        self.pixels = pixels

    @property
    def patch_encoder(self) -> PatchEncoder | None:
        """Patch features to compare images by; none."""
        return None

    @property
    def canvas_frame(self) -> CanvasFrame | None:
        """How examples are laid out for it; it takes none."""
        return None

    def places(self, points: list, boxes: list, size: tuple[int, int]) -> Prompt:
        """Points and boxes as a prompt. Raises `InputError`: this kind takes none."""
        raise InputError("this model's decoder takes no points and boxes; a SAM decoder does")

    def dense(self, mask: np.ndarray) -> torch.Tensor:
        """A mask as dense prompt. Raises `InputError`: this kind takes none."""
        raise InputError("this model's decoder takes no mask to correct; a SAM decoder does")

    def save(self, folder: Path) -> None:
        """Writes an ordinary transformers folder with the preprocessing beside it."""
        self.model.save_pretrained(folder)
        self.pixels.save(folder)


class SamDecoderBase(BaseDecoder):
    """Image -> features -> mask logits, prompted by tokens, points, boxes or a previous mask.

    A kind gives `encode` and `draw`; `model` is its transformers model.
    """

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

    def draw(
        self, features: Features, positions: torch.Tensor, tokens: torch.Tensor, dense: torch.Tensor
    ) -> tuple:
        """(masks `[n, 1, 1, side, side]`, scores `[n, 1, 1]`) of n prompts, each with its own
        features.
        """
        raise NotImplementedError

    def decode(
        self, features: Features, image_index: torch.Tensor, prompt: Prompt
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[n, side, side]` and predicted IoU `[n]`; mask i belongs to image
        `image_index[i]` of the features.
        """
        n, encoder, dtype = len(prompt), self.model.prompt_encoder, features.embedding.dtype
        if n == 0:
            return features.embedding.new_zeros(
                0, self.side, self.side
            ), features.embedding.new_zeros(0)
        if prompt.dense is None:
            dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
                n, -1, *features.embedding.shape[-2:]
            )
        else:
            dense = encoder.mask_embed(prompt.dense.to(self._weight.dtype))
        positions = (
            self.model.get_image_wide_positional_embeddings().to(dtype).expand(n, -1, -1, -1)
        )
        masks, scores = self.draw(
            features[image_index], positions, prompt.tokens[:, None].to(dtype), dense.to(dtype)
        )
        return masks[:, 0, 0], scores[:, 0, 0]

    def restore(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits `[n, side, side]` in the frame of an image of `size`: float32 `[n, h, w]`
        (SAM's two-step resize).
        """
        if not len(logits):
            return logits.new_zeros(0, *size, dtype=torch.float32)
        height, width = self.pixels.resized(size)
        frame = (self.pixels.size, self.pixels.size)
        corners = self.pixels.enlarged > 0  # a picture enlarged by its corners comes back by them
        logits = F.interpolate(
            logits[:, None].float(), frame, mode="bilinear", align_corners=corners
        )
        logits = logits[..., :height, :width]
        if (height, width) != tuple(size):
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits[:, 0]

    def places(self, points: list, boxes: list, size: tuple[int, int]) -> Prompt:
        """Points `(x, y, on)` and boxes in pixels of an image of `size` as the tokens of one
        mask, `[1, k, d]`.
        """
        height, width = self.pixels.resized(size)
        scale = torch.tensor([width / size[1], height / size[0]], device=self._weight.device)
        scale = scale * (self.pixels.enlarged or self.pixels.size) / self.pixels.size
        corners = [
            torch.tensor(b, dtype=torch.float32, device=scale.device).reshape(2, 2) * scale
            for b in boxes
        ]
        tokens = [self._embed(input_boxes=c.reshape(1, 1, 4)) for c in corners]
        if points:
            spots = (
                torch.tensor([[p[:2] for p in points]], dtype=torch.float32, device=scale.device)
                * scale
            )
            labels = torch.tensor([[p[2] for p in points]], device=scale.device)
            # points alone get a padding point
            beside = {"input_boxes": corners[0].reshape(1, 1, 4)} if boxes else {}
            tokens[:1] = [
                self._embed(input_points=spots[None], input_labels=labels[None], **beside)
            ]
        return Prompt(torch.cat(tokens, 2)[0].to(self._weight.dtype))

    def _embed(self, **places) -> torch.Tensor:
        blank = dict.fromkeys(("input_points", "input_labels", "input_boxes", "input_masks"))
        return self.model.prompt_encoder(**{**blank, **places})[0]

    def dense(self, mask: np.ndarray) -> torch.Tensor:
        """A mask bool `[h, w]` as dense prompt `[1, 1, side, side]`: logits of +-10 in the
        network's frame.
        """
        logits = torch.from_numpy(mask).to(self._weight.device, torch.float32)[None, None] * 20 - 10
        logits = F.interpolate(
            logits, self.pixels.resized(mask.shape), mode="bilinear", antialias=True
        )
        frame = self.pixels.size
        logits = F.pad(
            logits, (0, frame - logits.shape[-1], 0, frame - logits.shape[-2]), value=-10.0
        )
        return F.interpolate(logits, (self.side, self.side), mode="bilinear", antialias=True).to(
            self._weight.dtype
        )
