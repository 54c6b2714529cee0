"""Objective of SegGPT: paint the mask of an image, given images with painted masks.

Masks may have any colour.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.datasets.synthetic.shown_families import Families
from reasonseg.decoders.seggpt import block
from reasonseg.errors import InputError
from reasonseg.nn import losses
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.reference_masks import region
from reasonseg.training.objectives.base import Objective, mean_overlap, resampled

SHARPNESS = 2.0  # initial scale of the projection in the reading layers
MAX_THINGS = 3  # number of painted objects per family


class Painting(Objective):
    """In-context painting on families of drawn scenes.

    Each object has 1 to `shown` references, which are read together. Options:

    - `white`: share of objects that are painted white; the others have a random colour. The
      background is black.
    - `eye`: a model (`embedded`, or a folder) whose vision tower `fresh` and `keep` use.
    - `fresh`: the first layers start as copies of that tower.
    - `keep`: weight of a loss for the two halves of a canvas: their features stay close to those
      that the tower has for each image alone.
    - `find`: weight of a simpler loss on the last states: whether a patch of the image belongs to
      the object.
    - `paint`: weight of the painting loss. Where `paint` and `find` are 0, images run through the
      first layers only.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        shown: int = 2,
        white: float = 0.6,
        eye: str = "",
        fresh: bool = True,
        keep: float = 1.0,
        find: float = 1.0,
        paint: float = 1.0,
    ):
        super().__init__()
        self.segmenter, self.shown, self.white = segmenter, shown, white
        self.keep, self.find, self.paint = keep, find, paint
        self.finder = nn.Linear(segmenter.decoder.model.config.hidden_size, 1)
        source = (
            Segmenter.from_pretrained(
                None if eye == "embedded" else eye, device="cpu", dtype="float32"
            )
            if eye
            else None
        )
        if source is not None:
            source.requires_grad_(False)
        if source is not None and fresh:
            copy_tower(segmenter.decoder, source)
        # a tuple, so that its modules are not saved: the tower and the projection
        self.eye: tuple[Any, ...] = compared_by(source) if source is not None else ()

    def dataset(self, data: Kind, length: int, seed: int) -> Families:
        config = data.config
        return Families(
            pack_of(config.sprites),
            self.segmenter.decoder.side,
            self.shown,
            seed,
            length,
            1,
            marks=("mask",),
        )

    def collate(self, items: list[dict]) -> dict:
        """Canvases in the decoder's frame.

        Images are `[p, 3, s, s]`; each object has the indices of its images, and masks `[s, s]`.
        """
        decoder, pictures, things = self.segmenter.decoder, [], []
        for item in items:
            first = len(pictures)
            pictures += [decoder.pixels(image) for image in item["pictures"]]
            for thing in item["things"][:MAX_THINGS]:
                rows = [
                    (first + 1 + k, decoder.pixels.mask(region(r), squash=True))
                    for k, r in thing["references"]
                ]
                things.append(
                    {
                        "query": first,
                        "references": rows,
                        "mask": decoder.pixels.mask(thing["mask"], squash=True),
                    }
                )
        return {"pictures": torch.stack(pictures), "things": things}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        decoder: Any = self.segmenter.decoder
        things = batch["things"]
        pictures = batch["pictures"].to(decoder.mean.device)
        alone = self.looked(pictures) if self.eye and self.keep else None
        if not self.find and not self.paint:
            if alone is None:
                raise InputError(
                    "options: find and paint are 0, so keep has to be above 0 and eye has to name "
                    "a model"
                )
            kept = self.keeping(batch["things"], pictures, alone)
            return {"loss": kept, "keep": kept.detach()}
        sums: dict[str, torch.Tensor] = {}
        for shown in {len(t["references"]) for t in things}:
            mine = [t for t in things if len(t["references"]) == shown]
            for name, value in self.painted(mine, shown, pictures, alone).items():
                sums[name] = sums.get(name, 0.0) + value * len(mine) / len(things)
        loss = (
            self.paint * sums["paint"]
            + self.find * sums["find"]
            + self.keep * sums.get("keep", 0.0)
        )
        return {"loss": loss, **{name: value.detach() for name, value in sums.items()}}

    def painted(
        self, things: list[dict], shown: int, pictures: torch.Tensor, alone: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Losses and mean IoU of objects with `shown` references each.

        `pictures` are `[p, 3, s, s]`; `alone` `[p, t, d]` are the tower's features of each, or
        None.
        """
        decoder: Any = self.segmenter.decoder
        masks = torch.stack(
            [torch.stack([t["mask"], *(m for _, m in t["references"])]) for t in things]
        )
        masks = masks.to(pictures.device)
        colors = painted_colors(len(things), self.white).to(pictures)
        canvas = torch.where(
            masks[:, :, None], colors[:, None, 1, :, None, None], colors[:, None, 0, :, None, None]
        )
        canvas = (canvas - decoder.mean) / decoder.std
        rows = torch.tensor([[r for r, _ in t["references"]] for t in things])
        asked = torch.tensor([t["query"] for t in things])
        even = torch.full((len(things), shown), 1 / shown, device=pictures.device)
        watch: list[torch.Tensor] = []
        out = decoder.run(
            pictures[asked], pictures[rows], canvas[:, 1:], even, shown > 1, "semantic", watch=watch
        )[:, 0]
        lower = out[..., decoder.side :, :].float()
        everywhere = torch.ones(len(things), *lower.shape[2:], device=pictures.device)
        parts = {"paint": losses.painting(lower, canvas[:, 0], everywhere, balanced(masks[:, 0]))}
        early, last = watch
        found = self.finder(last.flatten(1, 2).chunk(2, 1)[1])[..., 0].float()
        patch = decoder.model.config.patch_size
        shares = nn.functional.avg_pool2d(masks[:, 0].float(), patch).flatten(1)
        parts["find"] = nn.functional.binary_cross_entropy_with_logits(found, shares)
        if alone is not None:
            upper, beneath = early[: rows.numel()].flatten(1, 2).chunk(2, 1)
            wanted = torch.cat([alone[rows.flatten()], alone[asked.repeat_interleave(shown)]])
            parts["keep"] = self.unlike(torch.cat([upper, beneath]), wanted)
        seen = lower.detach() * decoder.std + decoder.mean
        away = [(seen - colors[:, k, :, None, None]).square().sum(1) for k in (0, 1)]
        return {**parts, "giou": mean_overlap(away[0] - away[1], masks[:, 0])}

    def keeping(
        self, things: list[dict], pictures: torch.Tensor, alone: torch.Tensor
    ) -> torch.Tensor:
        """Loss of the features that change when two images share a canvas.

        `alone` `[p, t, d]` are the tower's features of each image alone. Only the layers before the
        two streams merge are run.
        """
        decoder: Any = self.segmenter.decoder
        pairs = torch.tensor(
            sorted({(row, t["query"]) for t in things for row, _ in t["references"]})
        )
        canvas = torch.cat([pictures[pairs[:, 0]], pictures[pairs[:, 1]]], 2)
        states = decoder.embedded(canvas, canvas, None, "semantic")[: len(pairs)]
        for layer in decoder.model.model.encoder.layers[: decoder.model.config.merge_index + 1]:
            states = block(layer, states, None, pictures)
        upper, beneath = states.flatten(1, 2).chunk(2, 1)
        return self.unlike(
            torch.cat([upper, beneath]), torch.cat([alone[pairs[:, 0]], alone[pairs[:, 1]]])
        )

    @torch.no_grad()
    def looked(self, pictures: torch.Tensor) -> torch.Tensor:
        """The tower's features `[p, t, d]` of each image `[p, 3, s, s]` alone."""
        tower = self.eye[0].to(pictures.device)
        return tower(
            pictures, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states[-1]

    def unlike(self, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """1 - mean cosine similarity of states and their targets, both `[b, t, d]`.

        It is computed in the space in which the tower's model compares images.
        """
        compare = self.eye[1].to(states.device).weight
        states, wanted = (x.float() @ compare.T for x in (states, wanted))
        return 1 - nn.functional.cosine_similarity(states, wanted, dim=-1).mean()


def balanced(masks: torch.Tensor) -> torch.Tensor:
    """Pixel weights `[n, h, w]` that give an object the same total weight as its background.

    Without them a blank canvas has a small loss, and training starts badly.
    """
    share = masks.flatten(1).float().mean(1)[:, None, None].clamp(0.01, 0.99)
    return torch.where(masks, 0.5 / share, 0.5 / (1 - share))


def painted_colors(count: int, white: float) -> torch.Tensor:
    """Colours of background and object, 0..1, `[count, 2, 3]`.

    The background is black. The object is white, or (a share of 1 - `white`) of a random colour
    that differs clearly from black.
    """
    colors = torch.tensor([[0.0] * 3, [1.0] * 3]).repeat(count, 1, 1)
    for row in torch.nonzero(torch.rand(count) > white)[:, 0]:
        while (colors[row, 1] == 1).all() or colors[row, 1].norm() < 0.6:
            colors[row, 1] = torch.rand(3)
    return colors


def compared_by(looker: Segmenter) -> tuple[Any, Any]:
    """The vision tower of a model, and the projection in which it compares images."""
    backbone: Any = looker.backbone
    references: Any = looker.references
    return backbone.tower, references.visual_projection


@torch.no_grad()
def copy_tower(decoder, looker: Segmenter) -> None:
    """Starts a SegGPT decoder from the vision tower of another model.

    The first layers become those of a SigLIP tower of the same width and patch size. The tower's
    residual updates are scaled to a size of about 1. This changes only the scale of its states,
    since every layer normalises its input, and lets the fresh layers have an effect. The layers
    after it start by matching similar patches: queries and keys are the projection in which that
    model compares an image with its references.
    """
    model = decoder.model.model
    tower, projection = compared_by(looker)
    layers, embeddings = model.encoder.layers, model.embeddings
    size = tower_size(decoder, tower)
    scaled(embeddings.patch_embeddings.projection, tower.embeddings.patch_embedding, size)
    positions = tower.embeddings.position_embedding.weight / size
    grid = int((embeddings.position_embeddings.shape[1] - 1) ** 0.5)
    embeddings.position_embeddings[:, 1:] = resampled(positions[None], grid)
    for theirs, ours in zip(layers, tower.encoder.layers, strict=False):
        theirs.layernorm_before.load_state_dict(ours.layer_norm1.state_dict())
        theirs.layernorm_after.load_state_dict(ours.layer_norm2.state_dict())
        parts = [getattr(ours.self_attn, f"{name}_proj") for name in "qkv"]
        theirs.attention.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.attention.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
        scaled(theirs.attention.proj, ours.self_attn.out_proj, size)
        theirs.attention.rel_pos_h.zero_()
        theirs.attention.rel_pos_w.zero_()
        theirs.mlp.lin1.load_state_dict(ours.mlp.fc1.state_dict())
        scaled(theirs.mlp.lin2, ours.mlp.fc2, size)
    compare = projection.weight  # joint, width
    for reader in layers[len(tower.encoder.layers) :]:
        reader.layernorm_before.load_state_dict(tower.post_layernorm.state_dict())
        for part in range(2):
            first = part * compare.shape[1]
            reader.attention.qkv.weight[first : first + len(compare)] = compare * SHARPNESS
        nn.init.eye_(reader.attention.proj.weight)


def scaled(mine: Any, theirs: Any, size: float) -> None:
    """Copies a linear map so that its outputs are `size` times smaller."""
    mine.weight.copy_(theirs.weight / size)
    mine.bias.copy_(theirs.bias / size)


def tower_size(decoder, tower) -> float:
    """The standard deviation of a tower's last states on noise images."""
    pixels = torch.randn(
        4, 3, decoder.side, decoder.side, generator=torch.Generator().manual_seed(0)
    )
    return float(
        tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
        .hidden_states[-1]
        .std()
    )


OBJECTIVE = Painting
