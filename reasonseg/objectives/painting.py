"""SegGPT's stage: painting the mask of a picture after pictures whose masks are painted, in any colour."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from reasonseg import losses
from reasonseg.config import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.objectives.base import Objective, mean_overlap, resampled
from reasonseg.objectives.references import Families
from reasonseg.regions import region
from reasonseg.segmenter import Segmenter

WHITE = 0.6  # share of canvases painted white on black; the others are in two random colours
MAX_THINGS = 2  # of a family that are painted


class Painting(Objective):
    """In-context painting on drawn families of scenes, one to `shown` references each, read together."""

    def __init__(self, segmenter: Segmenter, shown: int = 2, tower: str = ""):
        super().__init__()
        self.segmenter, self.shown = segmenter, shown
        if tower:
            with torch.no_grad():
                copy_tower(
                    Segmenter.from_pretrained(None if tower == "embedded" else tower).backbone.tower, segmenter.decoder
                )

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        config = data.config
        return Families(
            pack_of(config.sprites), self.segmenter.decoder.side, self.shown, seed, length, 1, marks=("mask",)
        )

    def collate(self, items: list[dict]) -> dict:
        """Canvases in the decoder's frame: pictures `[p, 3, s, s]`, and per thing which of them, with masks `[s, s]`."""
        decoder, pictures, things = self.segmenter.decoder, [], []
        for item in items:
            first = len(pictures)
            pictures += [decoder.pixels(image) for image in item["pictures"]]
            for thing in item["things"][:MAX_THINGS]:
                rows = [(first + 1 + k, decoder.pixels.mask(region(r), squash=True)) for k, r in thing["references"]]
                things.append(
                    {"query": first, "references": rows, "mask": decoder.pixels.mask(thing["mask"], squash=True)}
                )
        return {"pictures": torch.stack(pictures), "things": things}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        decoder, things = self.segmenter.decoder, batch["things"]
        pictures = batch["pictures"].to(decoder.mean.device)
        total, overlap, count = 0.0, 0.0, len(things)
        for shown in {len(t["references"]) for t in things}:
            mine = [t for t in things if len(t["references"]) == shown]
            masks = torch.stack([torch.stack([t["mask"], *(m for _, m in t["references"])]) for t in mine]).to(
                pictures.device
            )
            colors = painted_colors(len(mine)).to(pictures)
            canvas = torch.where(
                masks[:, :, None], colors[:, None, 1, :, None, None], colors[:, None, 0, :, None, None]
            )
            canvas = (canvas - decoder.mean) / decoder.std
            rows = torch.tensor([[r for r, _ in t["references"]] for t in mine])
            query, images = pictures[[t["query"] for t in mine]], pictures[rows]
            even = torch.full((len(mine), shown), 1 / shown, device=pictures.device)
            out = decoder.run(query, images, canvas[:, 1:], even, shown > 1, "semantic")[:, 0]
            lower = out[..., decoder.side :, :].float()
            everywhere = torch.ones(len(mine), *lower.shape[2:], device=pictures.device)
            total = total + losses.painting(lower, canvas[:, 0], everywhere, balanced(masks[:, 0])) * len(mine) / count
            seen = lower.detach() * decoder.std + decoder.mean
            apart = (seen - colors[:, 0, :, None, None]).square().sum(1) - (
                seen - colors[:, 1, :, None, None]
            ).square().sum(1)
            overlap = overlap + mean_overlap(apart, masks[:, 0]) * len(mine) / count
        return {"loss": total, "giou": overlap}


def balanced(masks: torch.Tensor) -> torch.Tensor:
    """Weights of pixels `[n, h, w]` under which a thing counts as much as all around it: a blank canvas is no good start."""
    share = masks.flatten(1).float().mean(1)[:, None, None].clamp(0.01, 0.99)
    return torch.where(masks, 0.5 / share, 0.5 / (1 - share))


def painted_colors(count: int) -> torch.Tensor:
    """Background and thing, 0..1 `[count, 2, 3]`: black and white, or two colours that are well apart."""
    colors = torch.tensor([[0.0] * 3, [1.0] * 3]).repeat(count, 1, 1)
    for row in torch.nonzero(torch.rand(count) > WHITE)[:, 0]:
        while True:
            pair = torch.rand(2, 3)
            if (pair[0] - pair[1]).norm() > 0.6:
                break
        colors[row] = pair
    return colors


def copy_tower(tower, decoder) -> None:
    """Starts SegGPT's layers, patches and positions as those of a SigLIP tower of the same width and patch, as far as both go."""
    model = decoder.model.model
    model.embeddings.patch_embeddings.projection.load_state_dict(tower.embeddings.patch_embedding.state_dict())
    positions = tower.embeddings.position_embedding.weight
    grid = int((model.embeddings.position_embeddings.shape[1] - 1) ** 0.5)
    model.embeddings.position_embeddings[:, 1:] = resampled(positions[None], grid)
    for number, (theirs, ours) in enumerate(zip(model.encoder.layers, tower.encoder.layers, strict=False)):
        theirs.layernorm_before.load_state_dict(ours.layer_norm1.state_dict())
        theirs.layernorm_after.load_state_dict(ours.layer_norm2.state_dict())
        names = (
            "kkv" if number > model.config.merge_index else "qkv"
        )  # where pictures meet, like finds like from the start
        parts = [getattr(ours.self_attn, f"{name}_proj") for name in names]
        theirs.attention.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.attention.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.attention.proj.load_state_dict(ours.self_attn.out_proj.state_dict())
        theirs.mlp.lin1.load_state_dict(ours.mlp.fc1.state_dict())
        theirs.mlp.lin2.load_state_dict(ours.mlp.fc2.state_dict())
