"""What a decoder is, and what SAM, SAM-HQ and SAM 2 share as decoders.

A decoder encodes images once, then draws mask logits for any number of prompts. One file a kind:
its `Config`, with `build` (fresh weights), `load` (a folder that `save` wrote) and `example` (a
tiny one, for tests), and the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonseg.errors import InputError
from reasonseg.nn.features import Features, PatchEncoder
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.prompt import CanvasFrame, Prompt
from reasonseg.nn.shapes import Bool, Float, Int
from reasonseg.structures.query import Box, Point

Takes = tuple[Literal["tokens", "examples"], ...]


@runtime_checkable
class Decoder(Protocol):
    """Turns image features and prompts into mask logits.

    `BaseDecoder` implements what a kind may leave out. The `Config` of its file says what it
    `takes`, which `model_types` of transformers its `load` reads, and how it is built.

    Attributes:
        takes: `tokens` (SAM's sparse prompts), `examples` (in-context canvases), or both.
        model: The transformers model inside.
        pixels: How images enter.
    """

    takes: Takes
    model: Any
    pixels: ImageProcessor

    @property
    def width(self) -> int:
        """Width d of the prompt tokens it takes; 0 where it takes examples only."""
        ...

    @property
    def side(self) -> int:
        """Height and width of its logits."""
        ...

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs, by whose weights caches know its features."""
        ...

    @property
    def patch_encoder(self) -> PatchEncoder | None:
        """Patch features to compare images by; None where it has none to offer."""
        ...

    @property
    def canvas_frame(self) -> CanvasFrame | None:
        """How examples are laid out for it; None where it takes none."""
        ...

    def encode(self, images: list[np.ndarray]) -> Features:
        """Encodes images in one batch.

        Args:
            images: uint8 RGB `[h, w, 3]`, of any sizes.

        Returns:
            Features that only this decoder reads; row i is of image i.
        """
        ...

    def decode(
        self, features: Features, image_index: Int[Tensor, " n"], prompt: Prompt
    ) -> tuple[Float[Tensor, "n s s"], Float[Tensor, " n"]]:
        """Draws n masks at once.

        Args:
            features: What `encode` gave for b images.
            image_index: `[n]`; mask i is drawn on image `image_index[i]`, 0 to b - 1.
            prompt: n prompts of one kind; tokens `[n, k, d]`, or examples.

        Returns:
            Logits `[n, side, side]` (above 0 is inside) and predicted IoU `[n]`, 0..1.
        """
        ...

    def restore(
        self, logits: Float[Tensor, "n s s"], size: tuple[int, int]
    ) -> Float[Tensor, "n h w"]:
        """Brings logits back to the size of their image.

        Args:
            logits: `[n, side, side]`, as `decode` gives them.
            size: `(height, width)` of the image in pixels.

        Returns:
            float32 logits `[n, h, w]`; above 0 is inside.
        """
        ...

    def places(
        self, points: Sequence[Point], boxes: Sequence[Box], size: tuple[int, int]
    ) -> Prompt:
        """Encodes points and boxes as one prompt `[1, k, d]`.

        Args:
            points: `(x, y, on)` in pixels of the image; `on` is 1 inside the mask, 0 outside.
            boxes: `(x0, y0, x1, y1)` in pixels of the image.
            size: `(height, width)` of the image.

        Returns:
            The prompt of one mask.

        Raises:
            InputError: This decoder takes no points and boxes.
        """
        ...

    def dense(self, mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, "1 1 s s"]:
        """Encodes a mask as the dense prompt `[1, 1, side, side]` that starts its correction.

        Args:
            mask: bool `[h, w]`, of the size of the image.

        Returns:
            Logits in the decoder's frame.

        Raises:
            InputError: This decoder takes no masks.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes an ordinary transformers folder with the preprocessing beside it."""
        ...

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

    def places(
        self, points: Sequence[Point], boxes: Sequence[Box], size: tuple[int, int]
    ) -> Prompt:
        """Points and boxes as a prompt. Raises `InputError`: this kind takes none."""
        raise InputError("this model's decoder takes no points and boxes; a SAM decoder does")

    def dense(self, mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, "1 1 s s"]:
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
    def _weight(self) -> Tensor:
        return self.model.mask_decoder.iou_token.weight

    def encode(self, images: list[np.ndarray]) -> Features:
        """Features of uint8 `[h, w, 3]` images, in one batch."""
        raise NotImplementedError

    def draw(
        self, features: Features, positions: Tensor, tokens: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(masks `[n, 1, 1, side, side]`, scores `[n, 1, 1]`) of n prompts, each with its own
        features.
        """
        raise NotImplementedError

    def decode(
        self, features: Features, image_index: Int[Tensor, " n"], prompt: Prompt
    ) -> tuple[Float[Tensor, "n s s"], Float[Tensor, " n"]]:
        """Logits `[n, side, side]` and predicted IoU `[n]`; see `Decoder.decode`."""
        n, encoder, embedding = len(prompt), self.model.prompt_encoder, features.embedding
        if n == 0:
            return embedding.new_zeros(0, self.side, self.side), embedding.new_zeros(0)
        if prompt.dense is None:
            blank = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
            dense = blank.expand(n, -1, *embedding.shape[-2:])
        else:
            dense = encoder.mask_embed(prompt.dense.to(self._weight.dtype))
        dtype, positions = embedding.dtype, self.model.get_image_wide_positional_embeddings()
        positions = positions.to(dtype).expand(n, -1, -1, -1)
        tokens = prompt.tokens[:, None].to(dtype)
        masks, scores = self.draw(features[image_index], positions, tokens, dense.to(dtype))
        return masks[:, 0, 0], scores[:, 0, 0]

    def restore(
        self, logits: Float[Tensor, "n s s"], size: tuple[int, int]
    ) -> Float[Tensor, "n h w"]:
        """float32 logits `[n, h, w]`, by SAM's two-step resize (its `postprocess_masks`)."""
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

    def places(
        self, points: Sequence[Point], boxes: Sequence[Box], size: tuple[int, int]
    ) -> Prompt:
        """Points and boxes as the tokens `[1, k, d]` of one mask; see `Decoder.places`."""
        height, width = self.pixels.resized(size)
        scale = torch.tensor([width / size[1], height / size[0]], device=self._weight.device)
        scale = scale * (self.pixels.enlarged or self.pixels.size) / self.pixels.size
        corners = [
            torch.tensor(b, dtype=torch.float32, device=scale.device).reshape(2, 2) * scale
            for b in boxes
        ]
        tokens = [self._embed(input_boxes=c.reshape(1, 1, 4)) for c in corners]
        if points:
            spots = torch.tensor([[p[:2] for p in points]], dtype=torch.float32).to(scale) * scale
            labels = torch.tensor([[p[2] for p in points]], device=scale.device)
            # points alone get a padding point
            beside = {"input_boxes": corners[0].reshape(1, 1, 4)} if boxes else {}
            given = {"input_points": spots[None], "input_labels": labels[None], **beside}
            tokens[:1] = [self._embed(**given)]
        return Prompt(torch.cat(tokens, 2)[0].to(self._weight.dtype))

    def _embed(self, **places: Tensor) -> Tensor:
        blank = dict.fromkeys(("input_points", "input_labels", "input_boxes", "input_masks"))
        return self.model.prompt_encoder(**{**blank, **places})[0]

    def dense(self, mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, "1 1 s s"]:
        """A mask as dense prompt `[1, 1, side, side]`: logits of +-10 in the network's frame."""
        weight, frame = self._weight, self.pixels.size
        logits = torch.from_numpy(mask).to(weight.device, torch.float32)[None, None] * 20 - 10
        height, width = self.pixels.resized(mask.shape)
        logits = F.interpolate(logits, (height, width), mode="bilinear", antialias=True)
        logits = F.pad(logits, (0, frame - width, 0, frame - height), value=-10.0)
        small = F.interpolate(logits, (self.side, self.side), mode="bilinear", antialias=True)
        return small.to(weight.dtype)
