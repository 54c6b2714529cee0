"""SegGPT from transformers: learns in context, from pictures whose masks are painted, how to paint
the mask of another.

Its layers run in our own loop, so that the references of one picture are read together whatever
else is in the batch: in every block the attention output of the picture's half is averaged over its
references, for each of the two streams apart up to the block that merges them. (transformers' own
ensemble averages the two streams together in that block, and all pictures of a batch.) Every block
looks everywhere, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, SegGptConfig, SegGptForImageSegmentation

from reasonseg.decoders.base import BaseDecoder, Takes
from reasonseg.errors import InputError
from reasonseg.nn.canvas import arranged, block, restored, tiled
from reasonseg.nn.features import Features, PatchEncoder
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.pretrained import from_folder
from reasonseg.nn.prompt import Canvas, CanvasFrame, Prompt
from reasonseg.nn.shapes import Float, Int

THRESHOLD = 128 / 255  # a painted value above it is the thing (the released video code's rule)
STEEPNESS = 12.0  # of logits: white is 6 above the threshold
AT_ONCE = 4 * 896 * 448  # canvas pixels that go through together


@dataclass(frozen=True)
class Config:
    """`network` is a transformers `SegGptConfig` as a dict, read only where weights start fresh;
    `pixels` likewise.

    `resample`: how the painted half returns to the picture's frame; `nearest` as released, or
    `bilinear` for smoother edges.
    """

    takes: ClassVar[Takes] = ("examples",)
    model_types: ClassVar[tuple[str, ...]] = ("seggpt",)  # of transformers, that `load` reads

    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    resample: Literal["nearest", "bilinear"] = "nearest"

    def build(self) -> SegGpt:
        """A decoder with fresh weights."""
        config = SegGptConfig(**self.network)
        return SegGpt(SegGptForImageSegmentation(config), pixels_for(config, self.pixels), self)

    def load(self, folder: Path, allow: Sequence[str] = (), **options: Any) -> SegGpt:
        """A decoder from a folder that transformers' `save_pretrained` wrote; `allow` as in
        `weights.from_folder`.
        """
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "seggpt":
            raise InputError(f"{folder} holds a {kind!r} model; decoder seggpt takes seggpt")
        model = from_folder(SegGptForImageSegmentation, folder, allow, **options)
        side = model.config.image_size[1]
        return SegGpt(
            model, ImageProcessor.load(folder, size=side, aspect="squash", resample="bicubic"), self
        )

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests."""
        network = {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": [96, 48],
            "patch_size": 8,
        }
        network |= {
            "pretrain_image_size": 48,
            "mlp_dim": 64,
            "decoder_hidden_size": 8,
            "merge_index": 1,
        }
        return cls(network | {"intermediate_hidden_state_indices": [1, 3]})


def pixels_for(config: Any, more: dict) -> ImageProcessor:
    """Pictures are squashed to the half canvas with PIL's bicubic filter."""
    return ImageProcessor(
        **{"size": config.image_size[1], "aspect": "squash", "resample": "bicubic", **more}
    )


class SegGpt(BaseDecoder):
    """Pictures and examples -> mask logits."""

    takes: Takes = ("examples",)
    width = 0

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: SegGptForImageSegmentation, pixels: ImageProcessor, config: Config):
        super().__init__(model, pixels)
        self.config = config
        height, width = self.model.config.image_size
        if height != 2 * width:
            raise InputError(
                f"a SegGPT canvas is twice as high as wide; this one is {height}x{width}"
            )
        # positions are interpolated; only this check of transformers would refuse images of another
        # size than the config's
        model.model.embeddings.patch_embeddings.image_size = (2 * pixels.size, pixels.size)
        self.register_buffer("mean", torch.tensor(pixels.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std)[:, None, None], persistent=False)

    @property
    def side(self) -> int:
        """Height and width of its logits."""
        return self.pixels.size

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """None: `encode` only lays pictures out."""
        return ()

    def encode(self, images: list[np.ndarray]) -> Features:
        """The half canvases of uint8 `[h, w, 3]` images; what is beside them in a canvas decides
        all that follows.
        """
        return Features(self.pixels.batch(images, self.mean.device, torch.float32))

    @property
    def canvas_frame(self) -> CanvasFrame:
        """How references are laid out for it."""
        return CanvasFrame(self._images, self._normalised)

    @property
    def patch_encoder(self) -> PatchEncoder:
        """Patch features of images, each read beside itself and a blank mask: what a reference
        bank compares by.
        """
        config = self.model.config
        grid = self.side // config.patch_size
        return PatchEncoder(self, self.patch_features, self.pixels, grid, config.hidden_size)

    def _images(self, images: list[np.ndarray]) -> torch.Tensor:
        return self.encode(images).embedding

    def _normalised(self, colors: torch.Tensor) -> torch.Tensor:
        return (colors - self.mean) / self.std

    def decode(
        self, features: Features, image_index: Int[Tensor, " n"], prompt: Prompt
    ) -> tuple[Float[Tensor, "n s s"], Float[Tensor, " n"]]:
        """Logits `[n, side, side]` and scores `[n]` (1: SegGPT predicts no quality); mask i belongs
        to image `image_index[i]`.

        Masks that share a canvas and a picture are painted at once, in one colour each.
        """
        if len(prompt) == 0:
            return features.embedding.new_zeros(
                0, self.side, self.side
            ), features.embedding.new_zeros(0)
        jobs: dict[tuple[int, int], Canvas] = {}
        for i, painted in zip(image_index.tolist(), prompt.examples, strict=True):
            jobs.setdefault((i, id(painted.canvas)), painted.canvas)
        results: dict[tuple[int, int], torch.Tensor] = {}
        for alike in by_kind(jobs):
            pictures = features.embedding[[i for i, _ in alike]]
            painted = self.paint(pictures, [jobs[key] for key in alike])
            results |= dict(zip(alike, painted, strict=True))
        rows = [
            likeness(results[i, id(p.canvas)], p.canvas.colors, p.number)
            for i, p in zip(image_index.tolist(), prompt.examples, strict=True)
        ]
        return torch.stack(rows), torch.ones(len(rows), device=image_index.device)

    def paint(self, pictures: torch.Tensor, canvases: list[Canvas]) -> torch.Tensor:
        """What is painted beside pictures `[q, 3, s, s]`, as colours 0..1 `[q, 3, s, s]`;
        canvases hold as many references.
        """
        turns = canvases[0].arrangements
        jobs = [(q, turn) for q in range(len(canvases)) for turn in range(turns)]
        shown = len(canvases[0].images) * (
            len(canvases[0].images) if canvases[0].ensemble == "spatial" else 1
        )
        at_once = max(AT_ONCE // (2 * self.side**2 * shown), 1)
        sums = torch.zeros_like(pictures)
        for start in range(0, len(jobs), at_once):
            part = jobs[start : start + at_once]
            query = torch.stack([arranged(pictures[q], turn) for q, turn in part])
            images = torch.stack([arranged(canvases[q].images.to(query), turn) for q, turn in part])
            targets = torch.stack(
                [arranged(canvases[q].targets.to(query), turn) for q, turn in part]
            )
            weights = torch.stack([canvases[q].weights.to(query) for q, _ in part])
            out = self.read(query, images, targets, weights, canvases[0].ensemble, canvases[0].type)
            for (q, turn), colors in zip(part, out, strict=True):
                sums[q] += restored(colors, turn)
        return (sums / turns * self.std + self.mean).clamp(0, 1)

    def read(self, query, images, targets, weights, ensemble: str, type_: str) -> torch.Tensor:
        """The painted half `[q, 3, s, s]`, normalised, of `query` `[q, 3, s, s]` after images
        and targets `[q, k, 3, s, s]`.
        """
        if ensemble == "spatial":
            images, targets = tiled(images), tiled(targets)
            weights = weights.new_ones(len(query), 1)
        canvas = self.run(query, images, targets, weights, ensemble == "feature", type_)
        lower = canvas[..., self.side :, :]
        if ensemble == "mean":
            return (lower * weights[..., None, None, None]).sum(1)
        return lower[:, 0]

    def run(
        self,
        query,
        images,
        targets,
        weights,
        together: bool,
        type_: str,
        masked=None,
        answer=None,
        watch=None,
    ) -> torch.Tensor:
        """The whole canvas `[q, k, 3, 2 s, s]`; of references read `together` only the first row,
        `[q, 1, ...]`.

        `masked` `[q * k, patches]` (None: the lower half) is what has to be painted, `answer` `[q,
        3, s, s]` what shows where the lower half is not masked; `watch`, a list, takes the states
        of both streams `[2 q k, h, w, d]` where they merge, and the last ones `[q or q k, h, w,
        d]`. All three are for training.
        """
        count, shown = images.shape[:2]
        upper = images.flatten(0, 1)
        seen = torch.cat([upper, query[:, None].expand(-1, shown, -1, -1, -1).flatten(0, 1)], 2)
        painted = targets.flatten(0, 1)
        below = (
            painted
            if answer is None
            else answer[:, None].expand(-1, shown, -1, -1, -1).flatten(0, 1)
        )
        states = self.embedded(seen, torch.cat([painted, below], 2), masked, type_)
        together = together and shown > 1
        config, taps = self.model.config, []
        for number, layer in enumerate(self.model.model.encoder.layers):
            streams = 2 if number <= config.merge_index else 1
            grouped = (streams, count, shown) if together else None
            states = block(layer, states, grouped, weights)
            if number == config.merge_index:
                if watch is not None:
                    watch.append(states)
                states = (states[: len(upper)] + states[len(upper) :]) / 2
            if number in config.intermediate_hidden_state_indices:
                rows = states[::shown] if together else states
                taps.append(self.model.model.encoder.layernorm(rows))
        if watch is not None:
            watch.append(states[::shown] if together else states)
        return self.model.decoder(torch.cat(taps, -1)).unflatten(0, (count, -1))

    def embedded(
        self, seen: torch.Tensor, painted: torch.Tensor, masked: torch.Tensor | None, type_: str
    ) -> torch.Tensor:
        """Both streams `[2 r, h, w, d]` of canvases `[r, 3, 2 s, s]`; `masked` `[r, h * w]`
        (None: lower half) is unseen.
        """
        patch = self.model.config.patch_size
        height, width = seen.shape[2] // patch, seen.shape[3] // patch
        if masked is None:
            masked = torch.zeros(1, height * width, dtype=torch.bool, device=seen.device)
            masked[:, height * width // 2 :] = True
        dtype = self.model.model.embeddings.mask_token.dtype
        return self.model.model.embeddings(
            seen.to(dtype),
            painted.to(dtype),
            embedding_type=type_,
            bool_masked_pos=masked.expand(len(seen), -1),
        )

    def restore(
        self, logits: Float[Tensor, "n s s"], size: tuple[int, int]
    ) -> Float[Tensor, "n h w"]:
        """Logits `[n, s, s]` in the frame of an image of `size`: float32 `[n, h, w]`."""
        if not len(logits):
            return logits.new_zeros(0, *size, dtype=torch.float32)
        if self.config.resample == "bilinear":
            return F.interpolate(
                logits[:, None].float(), size, mode="bilinear", align_corners=False
            )[:, 0]
        # exact, unlike float scales
        rows, columns = (torch.arange(n, device=logits.device) * self.side // n for n in size)
        return logits.float()[:, rows][:, :, columns]

    def patch_features(self, images: list[np.ndarray]) -> Float[Tensor, "b t d"]:
        """Features `[b, t, d]` of the patches of images; see `patch_encoder`."""
        pictures = self.encode(images).embedding
        blank = self._normalised(torch.zeros_like(pictures))
        states = self.embedded(
            torch.cat([pictures, pictures], 2), torch.cat([blank, blank], 2), None, "semantic"
        )
        for number, layer in enumerate(self.model.model.encoder.layers):
            states = block(layer, states, None, pictures)
            if number == self.model.config.merge_index:
                states = states.unflatten(0, (2, -1)).mean(0)
        half = states.shape[1] // 2
        return self.model.model.encoder.layernorm(states[:, half:]).flatten(1, 2)


def by_kind(jobs: dict[tuple[int, int], Canvas]) -> list[list[tuple[int, int]]]:
    """Jobs whose canvases can go through in one batch."""
    groups: dict[tuple, list[tuple[int, int]]] = {}
    for key, canvas in jobs.items():
        groups.setdefault(
            (len(canvas.images), canvas.ensemble, canvas.arrangements, canvas.type), []
        ).append(key)
    return list(groups.values())


def likeness(colors: torch.Tensor, wanted: torch.Tensor, number: int) -> torch.Tensor:
    """Logits `[s, s]` of being mask `number` from painted colours `[3, s, s]` and a palette
    `[labels + 1, 3]`.

    One label alone is white on black: the mean of the channels above 128/255. Among several, how
    much nearer its colour is than any other (squared distance), so that every pixel is above 0 in
    one of them at most.
    """
    if len(wanted) == 2:
        return (colors.mean(0) - THRESHOLD) * STEEPNESS
    distances = (colors[None] - wanted.to(colors)[:, :, None, None]).square().sum(1)
    others = torch.cat([distances[: number + 1], distances[number + 2 :]]).amin(0)
    return (others - distances[number + 1]) * STEEPNESS
