"""The decoder's stage on photographs: each thing from its code, a click, a box or a rough mask.

A code is the average of the tower's features under a mask, projected to one prompt token
(`recipes.embedded.codes`). So that a code may also come from words, the part of it that says what
is there is often that of all things of a name (a running mean), and the part that says where is
left out for some of those that ask for all of a name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.datasets.photographs.knowledge import things
from reasonseg.datasets.photos import Config, Views
from reasonseg.nn.efficientnet_lite import POSITIONS
from reasonseg.nn.losses import mask_losses
from reasonseg.nn.prompt import Prompt
from reasonseg.segmenters.base import Segmenter
from reasonseg.training.objectives.base import (
    Objective,
    box_in,
    click,
    framed_masks,
    kept,
    mean_overlap,
    resampled,
    tower_features,
)
from recipes.embedded.codes import Coder, patch_shares

KINDS = ("code", "click", "box", "mended")
CHANCES = (0.35, 0.22, 0.28, 0.15)
MOMENTUM = 0.9  # of the running means
TYPICAL, PLACELESS = 0.45, 0.25  # shares of codes
MOST = 7  # masks of a view
# of the tower's features within a patch; on many photographs
MEAN, SPREAD = 0.03, 3.0
SHARP = 2.0  # scale of aligned projections


class ViewMasks(Dataset):
    """View `i` of a seed: image, masks, their names, and the kind of each mask's prompt."""

    def __init__(self, config: Config, seed: int, length: int):
        self.views, self.seed, self.length = Views(config), seed, length
        self.names = list(things())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        for attempt in range(20):
            rng = np.random.default_rng([self.seed, 41, i, attempt])
            view = self.views.view(rng)
            if view.objects:
                break
        single = [view.objects[k] for k in rng.permutation(len(view.objects))[:MOST]]
        masks, names, whole = [], [], []
        for found in single:
            together = [o.mask for o in view.objects if o.name == found.name and found.name]
            union = bool(together) and rng.random() < 0.4
            masks.append(np.logical_or.reduce(together) if union else found.mask)
            names.append(self.names.index(found.name) if found.name in self.names else -1)
            whole.append(union or len(together) == 1)
        kinds = rng.choice(len(KINDS), size=len(masks), p=CHANCES)
        kinds = np.where(np.array(whole) & (kinds == 1), 0, kinds)  # a click means one thing
        return {
            "image": view.image, "masks": np.stack(masks), "names": np.array(names),
            "kinds": kinds, "whole": np.array(whole), "void": view.void,
        }  # fmt: skip


@torch.no_grad()
def align(model: torch.nn.Module, coder: Coder) -> None:
    """Starts SAM 2's neck as the coder, and its attention with queries equal to keys."""
    neck, weight = model.vision_encoder.neck, coder.project.weight * coder.norm.weight / SPREAD
    coarse, fine = neck.convs[0], neck.convs[1]  # of strides 32 and 16
    wide, narrow = coarse.in_channels, fine.in_channels
    coarse.weight.copy_(weight[:, :wide, None, None])
    coarse.bias.copy_(coder.project.weight @ coder.norm.bias - MEAN * weight[:, :wide].sum(1))
    four = weight[:, wide : wide + 4 * narrow].unflatten(1, (narrow, 4)).sum(-1)
    fine.weight.copy_(four[:, :, None, None])
    fine.bias.zero_()
    transformer = model.mask_decoder.transformer
    for attention in (
        *(layer.cross_attn_token_to_image for layer in transformer.layers),
        *(layer.cross_attn_image_to_token for layer in transformer.layers),
        transformer.final_attn_token_to_image,
    ):
        attention.k_proj.weight.mul_(SHARP)
        attention.q_proj.weight.copy_(attention.k_proj.weight)


class PhotoCodes(Objective):
    """Segments the things of photographs.

    - `match`: weight of a loss that keeps the decoder's image embedding close to the codes of its
      patches.
    - `fresh`: off keeps the decoder's own weights; on, its neck starts as the coder, and its
      attention with queries that are as its keys, so that a code finds patches that are like it,
      and a point those that are near it.
    - `coder`: a file of an earlier stage, from which the coder is read.
    """

    def __init__(
        self, segmenter: Segmenter, match: float = 0.5, fresh: bool = True, coder: str = ""
    ):
        super().__init__()
        self.segmenter, self.match = segmenter, match
        width = segmenter.backbone.model.config.vision_config.hidden_size
        self.coder = Coder(width, segmenter.decoder.width)
        if fresh:
            with torch.no_grad():
                self.coder.project.weight.mul_(3**0.5)  # codes of unit variance
        self.register_buffer("typical", torch.zeros(len(things()), width - POSITIONS))
        if coder:
            found = kept("coder", coder)
            self.load_state_dict(
                {k: v for k, v in found.items() if k.startswith(("coder.", "typical"))},
                strict=False,
            )
        if fresh:
            align(segmenter.decoder.model, self.coder)

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return ViewMasks(data.config, seed, length)

    def collate(self, items: list[dict]) -> dict:
        of = [i for i, item in enumerate(items) for _ in item["masks"]]
        joined = {k: np.concatenate([item[k] for item in items]) for k in
                  ("masks", "names", "kinds", "whole")}  # fmt: skip
        return {
            "images": [item["image"] for item in items],
            "of": torch.tensor(of),
            "void": torch.from_numpy(np.stack([item["void"] for item in items])),
            **{k: torch.from_numpy(v) for k, v in joined.items()},
        }

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        decoder, backbone = self.segmenter.decoder, self.segmenter.backbone
        masks, of = batch["masks"].to(self.segmenter.device), batch["of"].to(self.segmenter.device)
        with torch.no_grad():
            pixels = backbone.pixels.batch(batch["images"], self.segmenter.device, torch.float32)
            features = tower_features(self.segmenter, pixels).float()
        codes = self.codes(features, masks, of, batch["names"], batch["whole"])
        encoded = decoder.encode(batch["images"])
        sums = {"match": self.unlike(encoded.embedding.float(), features)}
        overlaps: dict[str, torch.Tensor] = {}
        halved, void = half(masks), half(batch["void"].to(masks.device))
        for kind, name in enumerate(KINDS):
            mine = (batch["kinds"] == kind).nonzero()[:, 0].to(masks.device)
            if not len(mine):
                continue
            prompt = self.prompt(name, encoded, of[mine], codes[mine], masks[mine])
            logits, predicted = decoder.decode(encoded, of[mine], prompt)
            owners = list(range(len(mine)))
            parts = mask_losses(
                enlarged, logits, predicted, [m[None] for m in halved[mine]], owners,
                [void[i] for i in of[mine].tolist()],
            )  # fmt: skip
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value * len(mine) / len(of)
            full = enlarged(logits.detach(), tuple(halved.shape[-2:]))
            overlaps[f"iou_{name}"] = mean_overlap(full, halved[mine])
        loss = 2 * sums["bce"] + sums["dice"] + 0.5 * sums["iou"] + self.match * sums["match"]
        return {"loss": loss, **{k: v.detach() for k, v in sums.items()}, **overlaps}

    def codes(
        self,
        features: torch.Tensor,
        masks: torch.Tensor,
        of: torch.Tensor,
        names: torch.Tensor,
        whole: torch.Tensor,
    ) -> torch.Tensor:
        """The codes of masks, some of them typical of their names, some without a place."""
        grid = int(features.shape[1] ** 0.5)
        shares = patch_shares(framed_masks(masks, self.segmenter.backbone.pixels.size), grid)
        part = (torch.rand_like(shares) < torch.rand_like(shares[:, :1]).clamp(min=0.3)) * shares
        shares = part + 1e-4 * shares
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
        pooled = torch.einsum("ntw,nt->nw", self.coder.norm(features)[of], shares)
        what, where = pooled[:, :-POSITIONS], pooled[:, -POSITIONS:]
        with torch.no_grad():
            for m, name in enumerate(names.tolist()):
                if name >= 0:
                    old = self.typical[name]
                    fresh = what[m].detach()
                    self.typical[name] = (
                        MOMENTUM * old + (1 - MOMENTUM) * fresh if old.any() else fresh
                    )
        named = (names >= 0).to(what.device)
        swap = named & (torch.rand(len(what), device=what.device) < TYPICAL)
        what = torch.where(swap[:, None], self.typical[names.clamp(min=0)].detach(), what)
        drop = whole.to(what.device) & (torch.rand(len(what), device=what.device) < PLACELESS)
        where = torch.where(drop[:, None], torch.zeros_like(where), where)
        codes = self.coder.project(torch.cat([what, where], 1))
        return codes + 0.1 * codes.detach().std() * torch.randn_like(codes)

    def unlike(self, embedding: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """How far the decoder's embedding is from the codes of its patches (1 - cosine)."""
        wanted = self.coder.project(self.coder.norm(features)).detach()
        wanted = resampled(wanted, embedding.shape[-1])
        seen = embedding.flatten(2).transpose(1, 2)
        return 1 - torch.nn.functional.cosine_similarity(seen, wanted, dim=-1).mean()

    def prompt(
        self, name: str, encoded, of: torch.Tensor, codes: torch.Tensor, truth: torch.Tensor
    ) -> Prompt:
        """The prompt of masks of one kind; `mended`: a code or a box, its mask, and a click."""
        decoder, size, plain = (
            self.segmenter.decoder,
            tuple(truth.shape[-2:]),
            Prompt(codes[:, None]),
        )
        if name == "code":
            return plain
        if name == "mended":
            with torch.no_grad():
                first = decoder.restore(decoder.decode(encoded, of, plain)[0], size) > 0
            clicks = torch.cat(
                [decoder.places([click(f, t)], [], size).tokens
                 for f, t in zip(first, truth, strict=True)]
            )  # fmt: skip
            dense = torch.cat([decoder.dense(f.numpy(force=True)) for f in first])
            return Prompt(torch.cat([plain.tokens, clicks.to(plain.tokens)], 1), dense)
        places = [
            decoder.places([inside(t)], [], size) if name == "click"
            else decoder.places([], [box_in(t)], size)
            for t in truth
        ]  # fmt: skip
        return Prompt.joined(places)

    def hands_over(self) -> dict[str, object]:
        """The coder and the typical codes, which are the targets of the language stage."""
        return {"coder": self.coder, "typical": self.typical}


def half(masks: torch.Tensor) -> torch.Tensor:
    """Masks `[n, s, s]` at half their size, where losses are computed; that is twice the logits."""
    return torch.nn.functional.avg_pool2d(masks[:, None].float(), 2)[:, 0] > 0.5


def enlarged(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Logits `[n, s, s]` at the size of halved masks."""
    return torch.nn.functional.interpolate(
        logits[:, None].float(), size, mode="bilinear", align_corners=False
    )[:, 0]


def inside(mask: torch.Tensor) -> tuple[float, float, int]:
    """A click on a mask, more often far from its edge, as people click."""
    spots = mask.nonzero()
    some = spots[torch.randint(len(spots), (6,))]
    middle = spots.float().mean(0)
    near = (some - middle).square().sum(1).argmin() if torch.rand(()) < 0.6 else 0
    y, x = some[int(near)].tolist()
    return float(x), float(y), 1


OBJECTIVE = PhotoCodes
