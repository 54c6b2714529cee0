"""What the stages of training minimise. Each objective wraps a segmenter and makes its own batches.

`dense` teaches the vision tower to name patches (`dense.py`), `codes` the decoder to draw what a code points at,
`language` the whole corridor. Only `language` is needed where released weights are fine-tuned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from reasonseg.config import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.dense import DenseHeads, DenseScenes, corner_pad
from reasonseg.prompt import Prompt
from reasonseg.scenes.drawing import draw_scene
from reasonseg.segmenter import Segmenter, distinct
from reasonseg.vocabulary import Sample


class Objective(nn.Module):
    """A segmenter with what only training needs. `forward(batch)` gives named losses, `loss` the one to minimise."""

    segmenter: Segmenter

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        """`length` items, a pure function of the seed."""
        raise NotImplementedError

    def collate(self, items: list) -> dict:
        """Items to a batch, in a worker process."""
        raise NotImplementedError

    def finish(self) -> None:
        """What is handed over when the stage ends."""


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


def tower_features(segmenter: Segmenter, pixels: torch.Tensor) -> torch.Tensor:
    """Patch features `[b, t, width]` of the backbone's vision tower."""
    return segmenter.backbone.tower(pixels, output_hidden_states=True).hidden_states[-1]


def resampled(values: torch.Tensor, grid: int) -> torch.Tensor:
    """Values of a square grid of patches `[b, t, d]` at another grid, `[b, grid * grid, d]`."""
    old = int(values.shape[1] ** 0.5)
    if old == grid:
        return values
    maps = values.transpose(1, 2).unflatten(2, (old, old))
    maps = nn.functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


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


class Coder(nn.Module):
    """A code for what a mask marks: the tower's features under it, averaged, as one prompt token.

    The features say what a patch shows and where its thing lies, so the code singles out one thing; what the decoder
    learns on codes holds for things that never had a name.
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.project = nn.Linear(width_in, width_out, bias=False)

    def forward(self, features: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Features `[n, t, width]`, the share of each patch under the mask `[n, t]` -> codes `[n, width_out]`."""
        pooled = torch.einsum("ntw,nt->nw", self.norm(features), shares) / shares.sum(1, keepdim=True).clamp(min=1e-6)
        return self.project(pooled)


def patch_shares(masks: torch.Tensor, grid: int) -> torch.Tensor:
    """How much of each patch of a square frame a mask covers: `[n, s, s]` -> `[n, grid * grid]`."""
    return nn.functional.adaptive_avg_pool2d(masks[:, None].float(), grid).flatten(1)


SHARP = 2.0
TEMPERATURE, POINTING = 0.1, 0.3  # of `Language.miss`


@torch.no_grad()
def align(decoder: nn.Module, coder: Coder) -> None:
    """Starts the decoder where like finds like: its neck projects features as the coder does, its queries equal its keys.

    Both are made `SHARP` times larger than usual, so that a code's attention falls on what resembles it from the first step.
    """
    coder.project.weight.mul_(3**0.5)  # codes of unit variance, as the normalised embedding has
    neck = decoder.model.vision_encoder.neck
    neck.conv1.weight.copy_(coder.project.weight[:, :, None, None])
    neck.conv2.weight.mul_(0.1)
    middle = neck.conv2.weight.shape[-1] // 2
    neck.conv2.weight[:, :, middle, middle] += torch.eye(len(neck.conv2.weight))
    transformer = decoder.model.mask_decoder.transformer
    for attention in (
        *(layer.cross_attn_token_to_image for layer in transformer.layers),
        *(layer.cross_attn_image_to_token for layer in transformer.layers),
        transformer.final_attn_token_to_image,
    ):
        attention.k_proj.weight.mul_(SHARP)
        attention.q_proj.weight.copy_(attention.k_proj.weight)


class SceneMasks(Dataset):
    """Scene `i` of a seed as (padded image, masks, how each is asked for: 0 its code, 1 a click, 2 a box)."""

    def __init__(self, sprites: list, size: int, seed: int, length: int):
        self.sprites, self.size, self.seed, self.length = sprites, size, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        scene = draw_scene(np.random.default_rng([self.seed, 78, i]), self.sprites, self.size)
        masks = np.stack([corner_pad(t.mask[..., None], self.size, 0)[..., 0] for t in scene.objects]).astype(bool)
        kinds = np.random.default_rng([self.seed, 79, i]).choice(3, size=len(masks), p=[0.7, 0.15, 0.15])
        return {"image": corner_pad(scene.image, self.size), "masks": masks, "kinds": kinds}


class Codes(Objective):
    """Draws every thing of a scene from its code, or from a click or a box.

    `match` keeps the decoder's image embedding close to the codes of its patches, so that finding what a code means starts
    as finding what looks like it; without it training stays on a plateau (every thing drawn at once) for long. `fresh` off keeps
    a decoder's own weights at the start, and `coder` (the `finished.safetensors` of an earlier stage) its coder's.
    """

    def __init__(self, segmenter: Segmenter, match: float = 2.0, fresh: bool = True, coder: str = ""):
        super().__init__()
        self.segmenter, self.match = segmenter, match
        vision = segmenter.backbone.model.config.vision_config
        self.size, self.grid = segmenter.decoder.pixels.size, vision.image_size // vision.patch_size
        self.coder = Coder(vision.hidden_size, segmenter.decoder.width)
        if fresh:
            align(segmenter.decoder, self.coder)
        if coder:
            kept = load_file(coder)
            self.coder.load_state_dict({k.removeprefix("coder."): v for k, v in kept.items() if k.startswith("coder.")})

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return SceneMasks(pack_of(data.config.sprites), self.size, seed, length)

    def collate(self, items: list[dict]) -> dict:
        masks = np.concatenate([item["masks"] for item in items])
        of = [i for i, item in enumerate(items) for _ in item["masks"]]
        return {
            "images": [item["image"] for item in items],
            "masks": torch.from_numpy(masks),
            "of": torch.tensor(of),
            "kinds": torch.from_numpy(np.concatenate([item["kinds"] for item in items])),
        }

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        decoder, masks, of = self.segmenter.decoder, batch["masks"], batch["of"]
        with torch.no_grad():
            pixels = self.segmenter.backbone.pixels.batch(batch["images"], masks.device, torch.float32)
            features = tower_features(self.segmenter, pixels)
        shares = patch_shares(masks, self.grid)
        shares = shares * (torch.rand_like(shares) < torch.rand_like(shares[:, :1]).clamp(min=0.3)) + 1e-4 * shares
        codes = self.coder(features[of].float(), shares)
        codes = codes + 0.1 * codes.std() * torch.randn_like(codes)
        encoded = decoder.encode(batch["images"])
        wanted = self.coder.project(self.coder.norm(features.float())).detach()
        seen = encoded.embedding.float()
        wanted = resampled(wanted, seen.shape[-1])
        seen = seen.flatten(2).transpose(1, 2)
        sums, iou = {"match": 1 - nn.functional.cosine_similarity(seen, wanted, dim=-1).mean()}, torch.zeros(())
        for kind in range(3):
            mine = (batch["kinds"] == kind).nonzero()[:, 0]
            if not len(mine):
                continue
            prompt = Prompt(codes[mine][:, None]) if kind == 0 else self._places(kind, mine, masks)
            logits, predicted = decoder.decode(encoded, of[mine], prompt)
            parts = self.segmenter.mask_losses(logits, predicted, [masks[mine]], [0] * len(mine))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value * len(mine) / len(of)
            if kind == 0:
                full = decoder.restore(logits, (self.size, self.size))
                iou = mean_overlap(full, masks[mine])
        loss = 2 * sums["bce"] + sums["dice"] + 0.5 * sums["iou"] + self.match * sums["match"]
        return {"loss": loss, **{k: v.detach() for k, v in sums.items()}, "giou": iou}

    def _places(self, kind: int, mine: torch.Tensor, masks: torch.Tensor) -> Prompt:
        tokens = []
        for m in mine.tolist():
            if kind == 1:
                spots = masks[m].nonzero()
                y, x = spots[torch.randint(len(spots), ())].tolist()
                tokens.append(self.segmenter.decoder.places([(x, y, 1)], [], (self.size, self.size)).tokens)
            else:
                tokens.append(self.segmenter.decoder.places([], [box_in(masks[m])], (self.size, self.size)).tokens)
        return Prompt(torch.cat(tokens))


@torch.no_grad()
def mean_overlap(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean IoU of thresholded logits `[n, h, w]` with masks."""
    marked = logits > 0
    union = (marked | masks).flatten(1).sum(1).clamp(min=1)
    return ((marked & masks).flatten(1).sum(1) / union).mean()


def box_in(mask: torch.Tensor) -> tuple[float, ...]:
    """A box around a mask `[h, w]`, each side off by up to two pixels."""
    ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    corners = torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]).float().cpu() + 4 * torch.rand(4) - 2
    height, width = mask.shape
    return tuple(corners.clamp(min=0).minimum(torch.tensor([width, height] * 2)).tolist())


def click(drawn: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, int]:
    """A point where a drawn mask is wrong (1: missing, 0: too much), or in the middle of the truth where it is right."""
    wrong = (drawn ^ truth).nonzero()
    spots = wrong if len(wrong) else truth.nonzero()
    y, x = spots[torch.randint(len(spots), ())].tolist()
    return float(x), float(y), int(truth[y, x])


class Language(Objective):
    """True answers through the whole corridor.

    `aim` draws the prompt of each `<SEG>` towards the code of the mask it means (needs a coder from the `codes` stage);
    `drawn` is the share of a batch whose masks are drawn and compared, the rest is only aimed. Of the drawn, a share `placed`
    also gets a box beside its `<SEG>`, as many a click that corrects the mask drawn without it, as many only a box or a click.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        aim: float = 0.0,
        drawn: float = 1.0,
        placed: float = 0.0,
        coder: Coder | None = None,
    ):
        super().__init__()
        self.segmenter, self.aim, self.drawn, self.placed, self.coder = segmenter, aim, drawn, placed, coder
        self.overlap = torch.zeros(())  # mean IoU of the masks drawn last, for the log

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return _Items(data.config.training(length, seed))

    def collate(self, items: list[Sample]) -> dict:
        return {"samples": items}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        samples, segmenter = batch["samples"], self.segmenter
        if not self.aim:
            return segmenter.loss(samples)
        images, of_image = distinct([s.query.image for s in samples])
        pixels = segmenter.backbone.pixels.batch(images, segmenter.device, torch.float32)
        patches = tower_features(segmenter, pixels)
        seen = segmenter.backbone.model.model.multi_modal_projector(patches)
        taught = segmenter.backbone.teach(samples, segmenter.prompter.config.at, features=seen)
        prompt = segmenter.prompter(taught.states)
        truths = [torch.from_numpy(s.truth.masks).to(segmenter.device) for s in samples]
        places = torch.tensor([of_image[owner] for owner in taught.of], device=segmenter.device)
        parts = {"text": taught.cross_entropy / max(taught.tokens, 1)}
        parts["aim"] = self.miss(prompt.tokens[:, 0], patches.detach()[places], truths)
        if self.drawn:
            count = max(int(len(samples) * self.drawn), 1)
            kept = [m for m, owner in enumerate(taught.of) if owner < count]
            encoded = segmenter.decoder.encode(images[: 1 + max(of_image[:count])])
            truth = torch.cat(truths)[kept]
            parts |= self.draw(encoded, places[kept], prompt.tokens[kept], truth)
        weights = segmenter.settings.loss
        loss = sum((self.aim if k == "aim" else getattr(weights, k)) * v for k, v in parts.items())
        said = {"words": taught.correct / max(taught.tokens, 1), **({"giou": self.overlap} if self.drawn else {})}
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}, **said}

    def draw(self, encoded, of: torch.Tensor, tokens: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mask losses of prompts `[m, 1, d]` on images `of` against `truth` `[m, h, w]`, all of one size."""
        decoder, size = self.segmenter.decoder, tuple(truth.shape[-2:])
        fate = torch.rand(len(truth)) / self.placed if self.placed else torch.full((len(truth),), 9.0)
        sums: dict[str, torch.Tensor] = {}
        for name, members in {
            "boxed": fate < 1,
            "mended": fate // 1 == 1,
            "alone": fate // 1 == 2,
            "plain": fate >= 3,
        }.items():
            mine = members.nonzero()[:, 0]
            if not len(mine):
                continue
            prompt = self.prompt(name, encoded, of[mine], tokens[mine], truth[mine])
            logits, predicted = decoder.decode(encoded, of[mine], prompt)
            parts = self.segmenter.mask_losses(logits, predicted, [truth[mine]], [0] * len(mine))
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value * len(mine) / len(truth)
            if name == "plain":
                self.overlap = mean_overlap(decoder.restore(logits, size), truth[mine])
        return sums

    def prompt(self, name: str, encoded, of: torch.Tensor, tokens: torch.Tensor, truth: torch.Tensor) -> Prompt:
        """`plain` tokens, `boxed` and `mended` ones (see the class), or a box or click `alone`, without words."""
        decoder, size, plain = self.segmenter.decoder, tuple(truth.shape[-2:]), Prompt(tokens)
        if name == "plain":
            return plain
        if name == "mended":
            with torch.no_grad():
                first = decoder.restore(decoder.decode(encoded, of, plain)[0], size) > 0
            clicks = [decoder.places([click(f, t)], [], size).tokens for f, t in zip(first, truth, strict=True)]
            dense = torch.cat([decoder.dense(f.numpy(force=True)) for f in first])
            return Prompt(torch.cat([tokens, torch.cat(clicks).to(tokens)], 1), dense)
        nothing = torch.zeros_like(truth[0])
        places = [
            decoder.places([click(nothing, t)], [], size)
            if name == "alone" and i % 3 == 0
            else decoder.places([], [box_in(t)], size)
            for i, t in enumerate(truth)
        ]
        places = Prompt(torch.cat([p.tokens for p in places]))
        return places if name == "alone" else plain.beside(places)

    def miss(self, tokens: torch.Tensor, patches: torch.Tensor, truths: list[torch.Tensor]) -> torch.Tensor:
        """How far prompt tokens `[m, d]` are from the codes of the masks they mean, averaged over masks.

        (1 - cosine) + relative squared distance, and a share of the cross entropy of pointing: among the codes of all patches
        of the image, those under the mask should be the likest. Only that tells equal things apart from the first step; a
        distance alone is content with their mean. `patches` `[m, t, width]` are the tower's features of each mask's image.
        """
        framed = torch.cat([framed_masks(t, self.segmenter.backbone.pixels.size) for t in truths if len(t)])
        shares = patch_shares(framed, int(patches.shape[1] ** 0.5))
        with torch.no_grad():
            codes = self.coder(patches.float(), shares)
            each = nn.functional.normalize(self.coder.project(self.coder.norm(patches.float())), dim=-1)
        tokens = tokens.float()
        cosine = nn.functional.cosine_similarity(tokens, codes, dim=-1)
        distance = (tokens - codes).square().mean(-1) / codes.square().mean()
        likeness = torch.einsum("mtd,md->mt", each, nn.functional.normalize(tokens, dim=-1)) / TEMPERATURE
        wanted = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
        pointing = -(wanted * likeness.log_softmax(1)).sum(1)
        return (1 - cosine + distance + POINTING * pointing).mean()


def framed_masks(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Masks `[n, h, w]` in a square frame of `side` pixels, at the top left, the longer side filling it."""
    height, width = masks.shape[-2:]
    if max(height, width) != side:
        scale = side / max(height, width)
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        masks = nn.functional.interpolate(masks[:, None].float(), size, mode="bilinear", antialias=True)[:, 0]
    return nn.functional.pad(masks.float(), (0, side - masks.shape[-1], 0, side - masks.shape[-2]))


class _Items(Dataset):
    """Our data sets as torch's."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]


OBJECTIVES: dict[str, Callable[..., Objective]] = {"dense": Dense, "codes": Codes, "language": Language}
