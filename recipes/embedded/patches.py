"""Dense supervision of a vision tower on drawn scenes: every patch says what it shows, its colour,
and its thing's box.

The first stage of the embedded model: a tower that can name what it sees is worth many epochs of
language later. Asked to, it also learns which patches are of one thing, where the middle of
each lies, how many others are like it and which of them it is from the left: a causal language
model over patches finds what a patch says, and does not count.
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
BACKGROUND = -1  # in `color` and `upside_down`: nothing to say
BLUR = 0.6  # patches: how far the middle of a thing is spread
MOST = 4  # equal things that are told apart in number, and places among them


class DenseScenes(Dataset):
    """Scene `i` of a seed as (pixels, labels per patch), a pure function of both. Every
    `crowded`-th is crowded.
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
        # a bigger picture comes in softened
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
        """Per patch: `thing` (0 background), `color`, `upside_down` (-1 unknown), `box` as
        fractions of the side.

        `owner` says which thing of the scene it is (0 background), `middle` how much of the middle
        of that thing it holds, `row` `[t, 4]` how that thing stands among its like (`standing`; 0
        in the background).
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
    """Which thing each of `grid * grid` patches of a scene in a square frame shows: its index
    plus one, 0 the background.
    """
    side = max(scene.image.shape)
    share = np.zeros((len(scene.objects) + 1, grid, grid), np.float32)
    for k, thing in enumerate(scene.objects, 1):
        padded = np.zeros((side, side), np.float32)
        padded[: thing.mask.shape[0], : thing.mask.shape[1]] = thing.mask
        share[k] = padded.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
    share[0] = 0.4  # a patch belongs to a thing that covers more of it than this
    share = share.reshape(len(share), -1)
    owner = share.argmax(0)
    for k in range(1, len(share)):  # a necklace may cover no patch so well; it has its best one
        if k not in owner:
            owner[share[k].argmax()] = k
    return owner


def middles(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """How much of the middle of its thing's box each patch of `owner` holds, float32: 1 for each
    thing, most in the nearest.
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
    """Of each thing, int64 `[n, 4]`: how many others are called the same, how many of those are
    further left; so for its kind.

    At most `MOST` - 1 each.
    """
    things = scene.objects
    x = np.array([thing.center[0] for thing in things])
    columns = []
    for words in ([thing.name for thing in things], [thing.sprite.category for thing in things]):
        alike = np.array([[a == b for b in words] for a in words])
        columns += [alike.sum(1) - 1, (alike & (x[None] < x[:, None])).sum(1)]
    return np.stack(columns, 1).clip(max=MOST - 1).astype(np.int64)


def stood(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """How the thing of each patch of `owner` stands, int64 `[t, 4]`: its `standing`, 0 in the
    background.
    """
    return np.concatenate([np.zeros((1, 4), np.int64), standing(scene)])[owner]


def corner_pad(image: np.ndarray, size: int, fill: int = 128) -> np.ndarray:
    """uint8 `[h, w, c]` padded with `fill` (mid grey) at the right and bottom to `[size, size,
    c]`.
    """
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

    def forward(
        self, features: torch.Tensor, labels: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses by name, `loss` their sum, `accuracy` the share of foreground patches named
        right.
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
    """Binary cross entropy of logits `[n, t, 1]` with `middles` `[n, t]`, for each thing."""
    each = F.binary_cross_entropy_with_logits(logits.float()[..., 0], shares, reduction="sum")
    return each / shares.sum().clamp(min=1)


def standing_read(
    logits: torch.Tensor, stand: torch.Tensor, shown: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Cross entropy of logits `[n, t, 4 * MOST]` with how things stand `[n, t, 4]` (`standing`)
    where patches show one `[n, t]`.

    `name` and `kind` are means over those with others like them, and as much over the rest;
    `ranked` is how often both columns of `name` are right among the former.
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
    """Readers of patch features that tell things apart: which patches are of one thing, where its
    middle lies, how it stands among its like.

    Two patches are of one thing where the product of a query and a key says so, as attention would
    find it.
    """

    def __init__(self, width: int, narrow: int = 48):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, narrow), nn.Linear(width, narrow)
        self.middle, self.row = nn.Linear(width, 1), nn.Linear(width, 4 * MOST)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        nn.init.constant_(self.middle.bias, -4.0)  # few patches are a middle

    def forward(
        self, features: torch.Tensor, labels: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses by name, `apart` their sum; `together` and `ranked` are how often patches of
        equal things are judged rightly: two of them to be of two things, one by how its thing
        stands among those of its name.
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
    """Names every patch of drawn scenes with the backbone's vision tower; then hands its layers to
    the decoder's encoder.

    `apart` weighs telling things apart (`ApartHeads`). `keep` weighs staying close to the features
    the tower began with, for those who read them already; `readers` (the `finished.safetensors` of
    an earlier stage) are taken on, since fresh ones would shake it. Every `crowded`-th scene (2 or
    more) is full of things, which have few equals. `copy` off leaves the encoder alone, where it
    has learned already.
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
        object.__setattr__(self, "before", before)  # seen, not owned: neither trained nor saved
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
        """Gives the decoder's image encoder the tower's layers, as far as it has them."""
        if self.copy:
            copy_tower(self.segmenter.backbone.tower, self.segmenter.decoder.encoder)


@torch.no_grad()
def copy_tower(tower: nn.Module, encoder: nn.Module) -> None:
    """Copies a SigLIP tower into a SAM encoder of the same width, layer by layer (both are plain
    pre-norm ViTs).

    Positions are interpolated where the encoder's picture is larger.
    """
    patches, positions = (
        tower.embeddings.patch_embedding,
        tower.embeddings.position_embedding.weight,
    )
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


OBJECTIVE = Dense
