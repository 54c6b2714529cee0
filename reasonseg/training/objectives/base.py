"""The base class of objectives, and helpers. An objective's file has its class as `OBJECTIVE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.errors import InputError
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.sample import Sample


class Objective(nn.Module):
    """A segmenter with what only training needs.

    `forward(batch)` returns losses by name; `loss` is minimised. Losses of several micro-batches
    and processes are averaged. Where their sizes matter, `counts(batch)` gives the numbers of
    tokens and masks of a batch, and `forward(batch, counts)` divides by those of the whole step
    instead.
    """

    segmenter: Segmenter
    # options that an earlier stage of the run provides by `hands_over`
    needs: tuple[str, ...] = ()

    def dataset(self, data: Kind, length: int, seed: int) -> Any:
        """A data set of `length` items that depends on the seed only; it has `len` and an index."""
        raise NotImplementedError

    def collate(self, items: list) -> dict:
        """A batch of items; runs in a worker process."""
        raise NotImplementedError

    def counts(self, batch: dict) -> dict[str, int]:
        """The numbers over which a loss is averaged; empty where all batches have equal weight."""
        return {}

    def finish(self) -> None:
        """Runs once when the stage ends."""

    def hands_over(self) -> dict[str, Any]:
        """What later stages of the run may need, by the name of their option."""
        return {}


class Samples(Dataset):
    """Our samples as a data set of torch."""

    def __init__(self, samples: Any):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]


def kept(option: str, file: str) -> dict[str, torch.Tensor]:
    """What the `finished.safetensors` of an earlier stage holds beside the segmenter.

    Raises `InputError` where the file does not exist.
    """
    if not Path(file).is_file():
        raise InputError(
            f"options.{option} {file}: no such file; name the finished.safetensors of an earlier "
            "stage"
        )
    return {
        name: value for name, value in load_file(file).items() if not name.startswith("segmenter.")
    }


def tower_features(segmenter: Segmenter, pixels: torch.Tensor) -> torch.Tensor:
    """Patch features `[b, t, width]` of the backbone's vision tower on `pixels` `[b, 3, s, s]`.

    Raises `InputError` in a model without words.
    """
    backbone: Any = segmenter.language()[0]
    return backbone.tower(pixels, output_hidden_states=True).hidden_states[-1]


def resampled(values: torch.Tensor, grid: int) -> torch.Tensor:
    """Values `[b, t, d]` of a square grid of patches, resampled to `[b, grid * grid, d]`.

    Bilinear interpolation.
    """
    old = int(values.shape[1] ** 0.5)
    if old == grid:
        return values
    maps = values.transpose(1, 2).unflatten(2, (old, old))
    maps = nn.functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


@torch.no_grad()
def mean_overlap(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean IoU (0..1) of thresholded logits `[n, h, w]` with bool masks `[n, h, w]`."""
    marked = logits > 0
    union = (marked | masks).flatten(1).sum(1).clamp(min=1)
    return ((marked & masks).flatten(1).sum(1) / union).mean()


def box_in(mask: torch.Tensor) -> tuple[float, ...]:
    """A random box `(x0, y0, x1, y1)` in pixels around a mask `[h, w]`.

    Each side is off by up to two pixels.
    """
    ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    corners = (
        torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]).float().cpu() + 4 * torch.rand(4) - 2
    )
    height, width = mask.shape
    return tuple(corners.clamp(min=0).minimum(torch.tensor([width, height] * 2)).tolist())


def click(drawn: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, int]:
    """A random click `(x, y, on)` where a drawn mask `[h, w]` is wrong.

    `on` is 1 where the mask misses the truth `[h, w]` and 0 where it has too much. Where the mask
    is right, the click is inside the truth.
    """
    wrong = (drawn ^ truth).nonzero()
    spots = wrong if len(wrong) else truth.nonzero()
    y, x = spots[torch.randint(len(spots), ())].tolist()
    return float(x), float(y), int(truth[y, x])


def framed_masks(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Masks `[n, h, w]` in a square frame, float32 `[n, side, side]`.

    They lie at the top left; the longer side is resized to `side` pixels.
    """
    height, width = masks.shape[-2:]
    if max(height, width) != side:
        scale = side / max(height, width)
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        masks = nn.functional.interpolate(
            masks[:, None].float(), size, mode="bilinear", antialias=True
        )[:, 0]
    return nn.functional.pad(masks.float(), (0, side - masks.shape[-1], 0, side - masks.shape[-2]))
