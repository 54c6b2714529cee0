"""Dense supervision of a vision tower on drawn scenes: object, colour and box of every patch.

This is the first stage of the embedded model. A tower that can name what an image shows saves many
epochs of language training. With `apart`, it also learns which patches belong to one object, where
the centre of each object lies, how many others of its name there are, and its rank among them from
the left. A causal language model over patches can retrieve such facts from a patch, but it cannot
count.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.datasets.synthetic.drawing import Scene, draw_scene
from reasonseg.datasets.synthetic.sprites import HUES, Sprite
from reasonseg.errors import InputError
from reasonseg.segmenters.base import Segmenter
from reasonseg.training.objectives.base import Objective, kept, resampled, tower_features

COLORS = tuple(HUES)
BACKGROUND = -1  # in `color` and `upside_down`: no label
BLUR = 0.6  # spread of an object's centre, in patches
MOST = 4  # classes of a count of equal objects, and of a rank among them


class DenseScenes(Dataset):
    """Scene `i` of a seed as (pixels, labels per patch), a pure function of both.

    Every `crowded`-th scene has many objects.
    """

    def __init__(
        self, sprites: list[Sprite], size: int, patch: int, seed: int, length: int, crowded: int = 2
    ):
        self.sprites, self.size, self.patch, self.seed, self.length = (
            sprites,
            size,
            patch,
            seed,
            length,
        )
        self.crowded = crowded
        # 0 is the background
        self.classes = {sprite.name: i + 1 for i, sprite in enumerate(sprites)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if i >= self.length:
            raise IndexError(i)
        rng = np.random.default_rng([self.seed, 77, i])
        # a larger image is resized, and so softer
        side = self.size if rng.random() < 0.8 else self.size * 3 // 2
        scene = draw_scene(
            rng, self.sprites, side, crowd=int(rng.integers(6, 9)) if i % self.crowded == 1 else 0
        )
        image = corner_pad(scene.image, side)
        if side != self.size:
            image = np.asarray(
                Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR)
            )
        return {"image": image, **self.labels(scene)}

    def labels(self, scene: Scene) -> dict[str, np.ndarray]:
        """Labels of each patch, arrays `[t]` unless given otherwise.

        - `thing`: the class, 0 for the background. `color`: its colour. `upside_down`: 0 or 1. -1
          is unknown.
        - `box` `[t, 4]`: the object's box as fractions of the side.
        - `owner`: the number of the object in the scene, 0 for the background.
        - `middle`: the share of the object's centre in the patch.
        - `row` `[t, 4]`: the object's counts among equal ones (`standing`); 0 in the background.
        """
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
            "owner": owner,
            "middle": middles(scene, owner),
            "row": stood(scene, owner),
        }


def owners(scene: Scene, grid: int) -> np.ndarray:
    """The object of each of `grid * grid` patches of a scene in a square frame, `[grid * grid]`.

    It is the object's index plus one, or 0 for the background.
    """
    side = max(scene.image.shape)
    share = np.zeros((len(scene.objects) + 1, grid, grid), np.float32)
    for k, thing in enumerate(scene.objects, 1):
        padded = np.zeros((side, side), np.float32)
        padded[: thing.mask.shape[0], : thing.mask.shape[1]] = thing.mask
        share[k] = padded.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
    share[0] = 0.4  # a patch belongs to an object that covers more of it than this
    share = share.reshape(len(share), -1)
    owner = share.argmax(0)
    for k in range(1, len(share)):  # a thin object may cover no patch so well; it gets its best one
        if k not in owner:
            owner[share[k].argmax()] = k
    return owner


def middles(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """The share of its object's box centre in each patch of `owner`, float32 `[t]`.

    The shares of an object have sum 1; the nearest patch has the largest.
    """
    grid, side = int(len(owner) ** 0.5), max(scene.image.shape)
    places = (np.stack(np.divmod(np.arange(len(owner)), grid)[::-1], 1) + 0.5) / grid
    share = np.zeros(len(owner), np.float32)
    for k in np.unique(owner[owner > 0]):
        x0, y0, x1, y1 = scene.objects[k - 1].box
        mine = np.flatnonzero(owner == k)
        away = (
            np.square(
                (places[mine] - ((x0 + x1) / 2 / side, (y0 + y1) / 2 / side)) * grid / BLUR
            ).sum(1)
            / 2
        )
        near = np.exp(away.min() - away)
        share[mine] = near / near.sum()
    return share


def standing(scene: Scene) -> np.ndarray:
    """Counts of each object among similar ones, int64 `[n, 4]`, at most `MOST` - 1.

    Columns: how many others have the same name, how many of those are further left; the same for
    the category.
    """
    things = scene.objects
    x = np.array([thing.center[0] for thing in things])
    columns = []
    for words in ([thing.name for thing in things], [thing.sprite.category for thing in things]):
        alike = np.array([[a == b for b in words] for a in words])
        columns += [alike.sum(1) - 1, (alike & (x[None] < x[:, None])).sum(1)]
    return np.stack(columns, 1).clip(max=MOST - 1).astype(np.int64)


def stood(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """The `standing` of each patch's object, int64 `[t, 4]`; 0 in the background.

    `owner` `[t]` has the object of each patch.
    """
    return np.concatenate([np.zeros((1, 4), np.int64), standing(scene)])[owner]


def corner_pad(image: np.ndarray, size: int, fill: int = 128) -> np.ndarray:
    """uint8 `[h, w, c]` padded at the right and bottom to `[size, size, c]`.

    `fill` is mid grey.
    """
    padded = np.full((size, size, image.shape[2]), fill, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


class DenseHeads(nn.Module):
    """Linear heads on patch features `[b, t, width]`: object, colour, orientation, box."""

    def __init__(self, width: int, things: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.thing = nn.Linear(width, things + 1)
        self.rest = nn.Linear(width, len(COLORS) + 2 + 4)

    def forward(
        self, features: torch.Tensor, labels: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses by name from features `[b, t, width]`; `loss` is their weighted sum.

        `accuracy` is the share of foreground patches with the right object.
        """
        features = self.norm(features)
        thing = self.thing(features).float()
        color, turn, box = self.rest(features).float().split((len(COLORS), 2, 4), -1)
        foreground = labels["thing"] > 0
        parts = {
            "thing": F.cross_entropy(thing.flatten(0, 1), labels["thing"].flatten()),
            "color": F.cross_entropy(
                color.flatten(0, 1), labels["color"].flatten(), ignore_index=BACKGROUND
            ),
            "turn": F.cross_entropy(
                turn.flatten(0, 1), labels["upside_down"].flatten(), ignore_index=BACKGROUND
            ),
            "box": F.l1_loss(box[foreground], labels["box"][foreground]),
        }
        loss = 2 * parts["thing"] + 0.3 * parts["color"] + 0.2 * parts["turn"] + 2 * parts["box"]
        accuracy = (thing.argmax(-1) == labels["thing"])[foreground].float().mean()
        return {
            "loss": loss,
            "accuracy": accuracy.detach(),
            **{k: v.detach() for k, v in parts.items()},
        }


def middle_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of logits `[n, t, 1]` with `middles` `[n, t]`, per object."""
    each = F.binary_cross_entropy_with_logits(logits.float()[..., 0], shares, reduction="sum")
    return each / shares.sum().clamp(min=1)


def standing_read(
    logits: torch.Tensor, stand: torch.Tensor, shown: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Cross entropy of logits `[n, t, 4 * MOST]` with `standing` `[n, t, 4]` of patches `shown`.

    `shown` `[n, t]` marks the patches of objects. `name` and `kind` average objects that have
    others of their name or category, and, with equal weight, the rest. `ranked` is how often both
    columns of `name` are right among the former.
    """
    row, parts = logits.float().unflatten(-1, (4, MOST)), {}
    missed = F.cross_entropy(row.flatten(0, 2), stand.flatten(), reduction="none").view_as(stand)
    for i, name in ((0, "name"), (2, "kind")):
        several, alone = shown & (stand[..., i] > 0), shown & (stand[..., i] == 0)
        mine = missed[..., i : i + 2].sum(-1)
        parts[name] = (
            sum(mine[which].sum() / which.sum().clamp(min=1) for which in (several, alone)) / 2
        )
    right = (row.argmax(-1) == stand)[..., :2].all(-1)
    return parts | {"ranked": right[shown & (stand[..., 0] > 0)].float().mean()}


class ApartHeads(nn.Module):
    """Heads on patch features that separate objects.

    They predict which patches belong to one object, where its centre lies, and its `standing`. Two
    patches belong to one object where the product of a query and a key is high, so that attention
    can use it.
    """

    def __init__(self, width: int, narrow: int = 48):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, narrow), nn.Linear(width, narrow)
        self.middle, self.row = nn.Linear(width, 1), nn.Linear(width, 4 * MOST)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        nn.init.constant_(self.middle.bias, -4.0)  # few patches contain a centre

    def forward(
        self, features: torch.Tensor, labels: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses by name from features `[b, t, width]`; `apart` is their sum.

        `together` and `ranked` are how often patches of equal objects are judged right: pairs as
        belonging to two objects, and an object's rank among those of its name.
        """
        features, owner, thing = self.norm(features), labels["owner"], labels["thing"]
        logits = (
            self.query(features) @ self.key(features).transpose(1, 2)
        ).float() / self.query.out_features**0.5
        logits = logits + self.bias
        ours = owner[:, :, None] == owner[:, None]
        alike = thing[:, :, None] == thing[:, None]
        shown = (owner > 0)[:, :, None]
        each = F.binary_cross_entropy_with_logits(logits, ours.float(), reduction="none")
        kinds = {"same": shown & ours, "other": shown & ~alike, "twin": shown & alike & ~ours}
        parts = {
            name: each[pairs].mean() if pairs.any() else each.sum() * 0
            for name, pairs in kinds.items()
        }
        parts["middle"] = middle_loss(self.middle(features), labels["middle"])
        read = standing_read(self.row(features), labels["row"], owner > 0)
        parts |= {name: read[name] for name in ("name", "kind")}
        right = ((logits > 0) == ours)[kinds["twin"]].float().mean()
        return {"apart": sum(parts.values()), "together": right, "ranked": read["ranked"], **parts}


class Dense(Objective):
    """Trains the backbone's vision tower on every patch of drawn scenes.

    - `copy`: at the end the decoder's image encoder gets the tower's layers. Off: it keeps its own,
      where it is trained already.
    - `apart`: weight of separating objects (`ApartHeads`).
    - `keep`: weight of a loss that keeps the features close to those at the start, for parts that
      were trained on them.
    - `readers`: the `finished.safetensors` of an earlier stage, whose heads are used; fresh heads
      would disturb the tower.
    - `crowded`: every so many-th scene (2 or more) has many objects, of which few are equal.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        copy: bool = True,
        apart: float = 0.0,
        keep: float = 0.0,
        readers: str = "",
        crowded: int = 2,
    ):
        super().__init__()
        if crowded < 2:
            raise InputError(
                f"options.crowded {crowded}: every so many-th scene is crowded; take 2 or more"
            )
        self.segmenter, self.copy, self.apart, self.keep, self.crowded = (
            segmenter,
            copy,
            apart,
            keep,
            crowded,
        )
        vision = segmenter.backbone.model.config.vision_config
        self.size, self.patch, self.width = vision.image_size, vision.patch_size, vision.hidden_size
        self.heads = DenseHeads(self.width, len(pack_of("")))
        self.apart_heads = ApartHeads(self.width) if apart else None
        before = deepcopy(segmenter.backbone.tower).requires_grad_(False) if keep else None
        object.__setattr__(self, "before", before)  # not registered: neither trained nor saved
        if readers:
            self.load_state_dict(kept("readers", readers), strict=False)

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return DenseScenes(
            pack_of(data.config.sprites), self.size, self.patch, seed, length, self.crowded
        )

    def collate(self, items: list[dict]) -> dict:
        return {
            name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]
        }

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        pixels = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
        features = tower_features(self.segmenter, pixels)
        parts = self.heads(features, batch)
        if self.apart:
            found = self.apart_heads(features, batch)
            parts["loss"] = parts["loss"] + self.apart * found["apart"]
            parts |= {name: value.detach() for name, value in found.items()}
        if self.keep:
            with torch.no_grad():
                known = self.before(pixels, output_hidden_states=True).hidden_states[-1].float()
            moved = (features.float() - known).square().mean() / known.var(dim=(0, 1)).mean()
            parts["loss"] = parts["loss"] + self.keep * moved
            parts["moved"] = moved.detach()
        return parts

    def finish(self) -> None:
        """Copies the tower's layers to the decoder's image encoder, as many as it has."""
        if self.copy:
            copy_tower(self.segmenter.backbone.tower, self.segmenter.decoder.encoder)


@torch.no_grad()
def copy_tower(tower: nn.Module, encoder: nn.Module) -> None:
    """Copies a SigLIP tower into a SAM encoder of the same width, layer by layer.

    Both are plain pre-norm ViTs. Positions are interpolated where the encoder's image is larger.
    """
    patches, positions = (
        tower.embeddings.patch_embedding,
        tower.embeddings.position_embedding.weight,
    )
    encoder.patch_embed.projection.load_state_dict(patches.state_dict())
    grid = encoder.pos_embed.shape[1]  # may be finer than that of the tower
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


OBJECTIVE = Dense
