"""Objective of the reference prompter: segment an object that is shown in other images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import pack_of
from reasonseg.datasets.synthetic.shown_families import Families
from reasonseg.nn.losses import mask_losses
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.reference_masks import region
from reasonseg.training.objectives.base import Objective, mean_overlap

TEMPERATURE = 0.07  # of the loss `alike`


class References(Objective):
    """Segments objects from references to them, with their label or without it.

    Each object has references in 1 to `shown` images. Options:

    - `unnamed`: share of objects whose label is left out.
    - `mislabelled`: share of objects with the label of another one, so that unknown words do no
      harm.
    - `alike`: weight of a contrastive loss (CLIP's loss, over objects instead of images). The
      pooled features of equal objects, and of an object and its label, become closer than those of
      others.
    - `tower`: off freezes the vision tower and computes no gradient through it.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        shown: int = 2,
        unnamed: float = 0.5,
        mislabelled: float = 0.0,
        alike: float = 0.5,
        tower: bool = False,
    ):
        super().__init__()
        self.segmenter, self.shown, self.unnamed, self.mislabelled = (
            segmenter,
            shown,
            unnamed,
            mislabelled,
        )
        self.alike, self.tower = alike, tower

    def dataset(self, data: Kind, length: int, seed: int) -> Families:
        config = data.config
        return Families(
            pack_of(config.sprites), config.size, self.shown, seed, length, config.same_shape
        )

    def collate(self, items: list[dict]) -> dict:
        """All images in one list, and for each object its images, masks, label and true mask.

        `query` and `references` are indices of images; `asked` is the number of the query image.
        """
        vlp: Any = self.segmenter.references
        pictures, things = [], []
        for number, item in enumerate(items):
            first = len(pictures)
            pictures += item["pictures"]
            for thing in item["things"]:
                rows = [
                    (first + 1 + k, vlp.frame(region(r)).bool()) for k, r in thing["references"]
                ]
                things.append({**thing, "asked": number, "query": first, "references": rows})
        truth = torch.from_numpy(np.stack([t["mask"] for t in things]))
        asked = [item["pictures"][0] for item in items]
        return {"pictures": pictures, "asked": asked, "things": things, "truth": truth}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        segmenter, things = self.segmenter, batch["things"]
        vlp: Any = segmenter.references
        with torch.set_grad_enabled(self.tower and torch.is_grad_enabled()):
            features = vlp.patch_encoder.encode(batch["pictures"])
        seen = vlp.placed(features)
        device = seen.device
        labels = [t["label"] if torch.rand(()) >= self.unnamed else None for t in things]
        named = sorted({t["label"] for t in things})
        known = vlp.texts(named)
        blank = torch.zeros_like(known[:1])
        text = torch.cat([known[named.index(label)][None] if label else blank for label in labels])
        # a wrong label stands for an unknown word: both carry no information
        wrong = torch.rand(len(text)) < self.mislabelled
        text = torch.where(wrong[:, None].to(device), text[torch.randperm(len(text))], text)
        each = vlp.config.queries + vlp.config.prototype
        tokens = torch.zeros(len(things), each, vlp.config.width_out, device=device)
        for count in {len(t["references"]) for t in things}:
            mine = [i for i, t in enumerate(things) if len(t["references"]) == count]
            rows = torch.tensor(
                [[r for r, _ in things[i]["references"]] for i in mine], device=device
            )
            masks = (
                torch.stack([torch.stack([m for _, m in things[i]["references"]]) for i in mine])
                .to(device)
                .float()
            )
            query = torch.tensor([things[i]["query"] for i in mine], device=device)
            prompt = vlp(seen[query], seen[rows], masks, text[mine])
            tokens = tokens.index_copy(
                0, torch.tensor(mine, device=device), prompt.tokens.to(tokens.dtype)
            )
        truth, size = batch["truth"].to(device), tuple(batch["truth"].shape[-2:])
        encoded = segmenter.decoder.encode(batch["asked"])
        of = torch.tensor([t["asked"] for t in things], device=device)
        logits, predicted = segmenter.decoder.decode(encoded, of, type(prompt)(tokens))
        parts = mask_losses(segmenter.decoder.restore, logits, predicted, [truth], [0] * len(truth))
        weights = segmenter.settings.loss
        loss = sum(getattr(weights, name) * value for name, value in parts.items())
        parts["alike"] = self.contrast(seen, things, known, named)
        overlap = mean_overlap(segmenter.decoder.restore(logits, size), truth)
        return {
            "loss": loss + self.alike * parts["alike"],
            **{k: v.detach() for k, v in parts.items()},
            "giou": overlap,
        }

    def contrast(
        self, seen: torch.Tensor, things: list[dict], known: torch.Tensor, named: list[str]
    ) -> torch.Tensor:
        """The contrastive loss over all objects of the batch.

        It is the cross entropy of finding equal objects, plus that of finding the label of each
        object. `seen` are unit features `[p, t, e]` of the images, `known` those of the labels
        `named`.
        """
        vlp: Any = self.segmenter.references
        rows, masks, names, labels = [], [], [], []
        for thing in things:
            for row, mask in [(thing["query"], vlp.frame(thing["mask"])), *thing["references"]]:
                rows.append(row)
                masks.append(mask.float())
                names.append(thing["name"])
                labels.append(named.index(thing["label"]))
        shares = F.interpolate(
            torch.stack(masks)[:, None].to(seen), (vlp.grid, vlp.grid), mode="area"
        ).flatten(1)
        pooled = F.normalize(torch.einsum("ntc,nt->nc", seen[rows], shares), dim=-1)
        kinds = torch.tensor([sorted(set(names)).index(n) for n in names], device=seen.device)
        same = (kinds[:, None] == kinds[None]).float().fill_diagonal_(0)
        likeness = (pooled @ pooled.T / TEMPERATURE).fill_diagonal_(-1e4).log_softmax(1)
        pairs = -(likeness * same).sum(1) / same.sum(1).clamp(min=1)
        called = F.cross_entropy(
            pooled @ known.T / TEMPERATURE, torch.tensor(labels, device=seen.device)
        )
        return pairs.mean() + called


OBJECTIVE = References
