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

from reasonseg.config import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.objectives.base import Objective, resampled, tower_features
from reasonseg.scenes.drawing import Scene, draw_scene
from reasonseg.scenes.sprites import HUES, Sprite
from reasonseg.segmenter import Segmenter

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
        side, owner = max(scene.image.shape), owners(scene, self.size // self.patch)
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


def owners(scene: Scene, grid: int) -> np.ndarray:
    """Which thing each of `grid * grid` patches of a scene in a square frame shows: its index plus one, 0 the background."""
    side = max(scene.image.shape)
    share = np.zeros((len(scene.objects) + 1, grid, grid), np.float32)
    for k, thing in enumerate(scene.objects, 1):
        padded = np.zeros((side, side), np.float32)
        padded[: thing.mask.shape[0], : thing.mask.shape[1]] = thing.mask
        share[k] = padded.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
    share[0] = 0.4  # a patch belongs to a thing that covers more of it than this
    return share.argmax(0).ravel()


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


class Dense(Objective):
    """Names every patch of drawn scenes with the backbone's vision tower; then hands its layers to the decoder's encoder.

    `copy` off leaves the encoder alone, where it has learned already.
    """

    def __init__(self, segmenter: Segmenter, copy: bool = True):
        super().__init__()
        self.segmenter, self.copy = segmenter, copy
        vision = segmenter.backbone.model.config.vision_config
        self.size, self.patch, self.width = vision.image_size, vision.patch_size, vision.hidden_size
        self.heads = DenseHeads(self.width, len(pack_of("")))

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return DenseScenes(pack_of(data.config.sprites), self.size, self.patch, seed, length)

    def collate(self, items: list[dict]) -> dict:
        return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        pixels = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.heads(tower_features(self.segmenter, pixels), {k: v for k, v in batch.items() if k != "image"})

    def finish(self) -> None:
        """Gives the decoder's image encoder the tower's layers, as far as it has them."""
        if self.copy:
            copy_tower(self.segmenter.backbone.tower, self.segmenter.decoder.encoder)


@torch.no_grad()
def copy_tower(tower: nn.Module, encoder: nn.Module) -> None:
    """Copies a SigLIP tower into a SAM encoder of the same width, layer by layer (both are plain pre-norm ViTs).

    Positions are interpolated where the encoder's picture is larger.
    """
    patches, positions = tower.embeddings.patch_embedding, tower.embeddings.position_embedding.weight
    encoder.patch_embed.projection.load_state_dict(patches.state_dict())
    grid = encoder.pos_embed.shape[1]  # may be finer than the tower's
    encoder.pos_embed.copy_(resampled(positions[None], grid).unflatten(1, (grid, grid)))
    for theirs, ours in zip(encoder.layers, tower.encoder.layers, strict=False):
        theirs.layer_norm1.load_state_dict(ours.layer_norm1.state_dict())
        theirs.layer_norm2.load_state_dict(ours.layer_norm2.state_dict())
        parts = [getattr(ours.self_attn, f"{name}_proj") for name in "qkv"]
        theirs.attn.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.attn.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.attn.proj.load_state_dict(ours.self_attn.out_proj.state_dict())
        theirs.mlp.lin1.load_state_dict(ours.mlp.fc1.state_dict())
        theirs.mlp.lin2.load_state_dict(ours.mlp.fc2.state_dict())
