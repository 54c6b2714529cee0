"""Dense supervision of a vision tower on drawn scenes: every patch says what it shows, its colour, and its thing's box.

The first stage of the embedded model: a tower that can name what it sees is worth many epochs of language later.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from reasonseg.scenes.drawing import Scene, draw_scene
from reasonseg.scenes.sprites import HUES, Sprite

COLORS = tuple(HUES)
BACKGROUND = -1  # in `color` and `upside_down`: nothing to say


class DenseScenes(Dataset):
    """Scene `i` of a seed as (pixels, labels per patch), a pure function of both. Every other scene is crowded."""

    def __init__(self, sprites: list[Sprite], size: int, patch: int, seed: int, length: int):
        self.sprites, self.size, self.patch, self.seed, self.length = sprites, size, patch, seed, length
        self.classes = {sprite.name: i + 1 for i, sprite in enumerate(sprites)}  # 0 is the background

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if i >= self.length:
            raise IndexError(i)
        rng = np.random.default_rng([self.seed, 77, i])
        side = self.size if rng.random() < 0.8 else self.size * 3 // 2  # a bigger picture comes in softened
        scene = draw_scene(rng, self.sprites, side, crowd=int(rng.integers(6, 9)) if i % 2 else 0)
        image = corner_pad(scene.image, side)
        if side != self.size:
            image = np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR))
        return {"image": image, **self.labels(scene)}

    def labels(self, scene: Scene) -> dict[str, np.ndarray]:
        """Per patch: `thing` (0 background), `color`, `upside_down` (-1 unknown), `box` as fractions of the side."""
        side, grid = max(scene.image.shape), self.size // self.patch
        share = np.zeros((len(scene.objects) + 1, grid, grid), np.float32)
        for k, thing in enumerate(scene.objects, 1):
            padded = np.zeros((side, side), np.float32)
            padded[: thing.mask.shape[0], : thing.mask.shape[1]] = thing.mask
            share[k] = padded.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
        share[0] = 0.4  # a patch belongs to a thing that covers more of it than this
        owner = share.argmax(0).ravel()
        table = [(0, BACKGROUND, BACKGROUND, 0, 0, 0, 0)]
        for thing in scene.objects:
            color = COLORS.index(thing.color) if thing.color in COLORS else BACKGROUND
            box = [c / side for c in thing.box]
            table.append((self.classes[thing.name], color, int(thing.upside_down), *box))
        rows = np.array(table, np.float32)[owner]
        return {
            "thing": rows[:, 0].astype(np.int64),
            "color": rows[:, 1].astype(np.int64),
            "upside_down": rows[:, 2].astype(np.int64),
            "box": rows[:, 3:],
        }


def corner_pad(image: np.ndarray, size: int, fill: int = 128) -> np.ndarray:
    """uint8 `[h, w, c]` padded with `fill` (mid grey) at the right and bottom to `[size, size, c]`."""
    padded = np.full((size, size, image.shape[2]), fill, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


class DenseHeads(nn.Module):
    """Linear readers of patch features `[b, t, width]`: thing, colour, turn, box."""

    def __init__(self, width: int, things: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.thing = nn.Linear(width, things + 1)
        self.rest = nn.Linear(width, len(COLORS) + 2 + 4)

    def forward(self, features: torch.Tensor, labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses by name, `loss` their sum, `accuracy` the share of foreground patches named right."""
        features = self.norm(features)
        thing = self.thing(features).float()
        color, turn, box = self.rest(features).float().split((len(COLORS), 2, 4), -1)
        foreground = labels["thing"] > 0
        parts = {
            "thing": F.cross_entropy(thing.flatten(0, 1), labels["thing"].flatten()),
            "color": F.cross_entropy(color.flatten(0, 1), labels["color"].flatten(), ignore_index=BACKGROUND),
            "turn": F.cross_entropy(turn.flatten(0, 1), labels["upside_down"].flatten(), ignore_index=BACKGROUND),
            "box": F.l1_loss(box[foreground], labels["box"][foreground]),
        }
        loss = 2 * parts["thing"] + 0.3 * parts["color"] + 0.2 * parts["turn"] + 2 * parts["box"]
        accuracy = (thing.argmax(-1) == labels["thing"])[foreground].float().mean()
        return {"loss": loss, "accuracy": accuracy.detach(), **{k: v.detach() for k, v in parts.items()}}
