"""The decoder's stage: segment the object of a code."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.datasets.synthetic.drawing import draw_scene
from reasonseg.nn.losses import mask_losses
from reasonseg.nn.prompt import Prompt
from reasonseg.segmenters.base import Segmenter
from reasonseg.training.objectives.base import (
    Objective,
    box_in,
    kept,
    mean_overlap,
    resampled,
    tower_features,
)
from recipes.embedded.patches import corner_pad

SHARP = 2.0  # scale in `align`


class Coder(nn.Module):
    """The code of a mask: the tower's features under it, averaged, as one prompt token.

    The features contain what a patch shows and where its object lies, so a code identifies one
    object. What the decoder learns with codes also applies to objects that never had a name.
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.project = nn.Linear(width_in, width_out, bias=False)

    def forward(self, features: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Codes `[n, width_out]` from features `[n, t, width]` and patch shares `[n, t]`.

        The shares (0..1) are those of each patch under the mask.
        """
        pooled = torch.einsum("ntw,nt->nw", self.norm(features), shares) / shares.sum(
            1, keepdim=True
        ).clamp(min=1e-6)
        return self.project(pooled)


def patch_shares(masks: torch.Tensor, grid: int) -> torch.Tensor:
    """The share (0..1) of each patch that a mask covers: `[n, s, s]` to `[n, grid * grid]`."""
    return nn.functional.adaptive_avg_pool2d(masks[:, None].float(), grid).flatten(1)


@torch.no_grad()
def align(decoder: nn.Module, coder: Coder) -> None:
    """Initialises a decoder so that codes match similar patches.

    Its neck projects features as the coder does, and its queries equal its keys. Both are `SHARP`
    times larger than usual, so that a code attends to similar patches from the first step.
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
    """Scene `i` of a seed: padded image, masks, and the prompt of each mask.

    The prompt is 0 a code, 1 a click, 2 a box.
    """

    def __init__(self, sprites: list, size: int, seed: int, length: int):
        self.sprites, self.size, self.seed, self.length = sprites, size, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        scene = draw_scene(np.random.default_rng([self.seed, 78, i]), self.sprites, self.size)
        masks = np.stack(
            [corner_pad(t.mask[..., None], self.size, 0)[..., 0] for t in scene.objects]
        ).astype(bool)
        kinds = np.random.default_rng([self.seed, 79, i]).choice(
            3, size=len(masks), p=[0.7, 0.15, 0.15]
        )
        return {"image": corner_pad(scene.image, self.size), "masks": masks, "kinds": kinds}


class Codes(Objective):
    """Segments every object of a scene from its code, a click or a box.

    - `match`: weight of a loss that keeps the decoder's image embedding close to the codes of its
      patches. So a code first matches similar patches. Without it, training stays on a plateau for
      long: all objects are drawn at once.
    - `fresh`: off keeps the decoder's own weights at the start.
    - `coder`: the `finished.safetensors` of an earlier stage, from which the coder's weights are
      read.
    """

    def __init__(
        self, segmenter: Segmenter, match: float = 2.0, fresh: bool = True, coder: str = ""
    ):
        super().__init__()
        self.segmenter, self.match = segmenter, match
        vision = segmenter.backbone.model.config.vision_config
        self.grid = vision.image_size // vision.patch_size
        self.coder = Coder(vision.hidden_size, segmenter.decoder.width)
        if fresh:
            align(segmenter.decoder, self.coder)
        if coder:
            found = kept("coder", coder)
            self.coder.load_state_dict(
                {k.removeprefix("coder."): v for k, v in found.items() if k.startswith("coder.")}
            )

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        return SceneMasks(pack_of(data.config.sprites), data.config.size, seed, length)

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
            pixels = self.segmenter.backbone.pixels.batch(
                batch["images"], masks.device, torch.float32
            )
            features = tower_features(self.segmenter, pixels)
        shares = patch_shares(masks, self.grid)
        shares = (
            shares * (torch.rand_like(shares) < torch.rand_like(shares[:, :1]).clamp(min=0.3))
            + 1e-4 * shares
        )
        codes = self.coder(features[of].float(), shares)
        codes = codes + 0.1 * codes.std() * torch.randn_like(codes)
        encoded = decoder.encode(batch["images"])
        wanted = self.coder.project(self.coder.norm(features.float())).detach()
        seen = encoded.embedding.float()
        wanted = resampled(wanted, seen.shape[-1])
        seen = seen.flatten(2).transpose(1, 2)
        sums, iou = (
            {"match": 1 - nn.functional.cosine_similarity(seen, wanted, dim=-1).mean()},
            torch.zeros(()),
        )
        for kind in range(3):
            mine = (batch["kinds"] == kind).nonzero()[:, 0]
            if not len(mine):
                continue
            prompt = Prompt(codes[mine][:, None]) if kind == 0 else self._places(kind, mine, masks)
            logits, predicted = decoder.decode(encoded, of[mine], prompt)
            parts = mask_losses(decoder.restore, logits, predicted, [masks[mine]], [0] * len(mine))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value * len(mine) / len(of)
            if kind == 0:
                full = decoder.restore(logits, tuple(masks.shape[-2:]))
                iou = mean_overlap(full, masks[mine])
        loss = 2 * sums["bce"] + sums["dice"] + 0.5 * sums["iou"] + self.match * sums["match"]
        return {"loss": loss, **{k: v.detach() for k, v in sums.items()}, "giou": iou}

    def hands_over(self) -> dict[str, nn.Module]:
        """The coder, whose codes are the targets of the language stage."""
        return {"coder": self.coder}

    def _places(self, kind: int, mine: torch.Tensor, masks: torch.Tensor) -> Prompt:
        tokens, decoder, size = [], self.segmenter.decoder, tuple(masks.shape[-2:])
        for m in mine.tolist():
            if kind == 1:
                spots = masks[m].nonzero()
                y, x = spots[torch.randint(len(spots), ())].tolist()
                tokens.append(decoder.places([(x, y, 1)], [], size).tokens)
            else:
                tokens.append(decoder.places([], [box_in(masks[m])], size).tokens)
        return Prompt(torch.cat(tokens))


OBJECTIVE = Codes
