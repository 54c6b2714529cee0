"""The projector's stage: each patch of a photograph is drawn to the word for what it shows.

The language model was trained on words alone. Where the patches that it is given lie near the
embeddings of names, it can look a name up from its first step. Names come from masks, and, where
there is none, from the classes of ImageNet that the tower's own classifier sees in a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._meta import _IMAGENET_CATEGORIES as CLASSES

from reasonseg.checkpoints.part_packages import TOWER
from reasonseg.config.schema import Kind
from reasonseg.datasets.photographs.knowledge import things
from reasonseg.nn.efficientnet_lite import HEAD, POSITIONS
from reasonseg.segmenters.base import Segmenter
from reasonseg.training.objectives.base import Objective, framed_masks, tower_features
from recipes.embedded.codes import patch_shares
from recipes.photo.codes import PhotoCodes, ViewMasks

TEMPERATURE = 0.07  # of the similarity of a patch to names
COVERED = 0.5  # of a patch: the share of a mask that gives it its name
SURE = 0.3  # the classifier's probability from which a patch has a class


class Legible(Objective):
    """Cross entropy over names, by the cosine to their embeddings.

    - `near`: weight of the squared distance of a patch to the embedding of its name, relative to
      the spread of embeddings. It sets the scale of patches.
    - `classes`: weight of ImageNet's names.
    """

    def __init__(self, segmenter: Segmenter, near: float = 0.2, classes: float = 0.5):
        super().__init__()
        self.segmenter, self.near, self.classes = segmenter, near, classes
        model: Any = segmenter.backbone.model
        self.projector: nn.Module = model.model.multi_modal_projector
        table = model.get_input_embeddings().weight.detach().float()
        self.middle = (table.mean(0),)  # tuples are not saved
        self.names = (self.embeddings(table, list(things())),)
        self.labels = (self.embeddings(table, [c.lower() for c in CLASSES]),)
        stored = torch.load(TOWER.checked(), map_location="cpu", weights_only=True)
        weight, bias = list(stored.values())[-2:]
        assert weight.shape == (len(CLASSES), HEAD)
        self.classifier = (weight.float(), bias.float())

    def embeddings(self, table: Tensor, names: list[str]) -> Tensor:
        """The mean embedding of the tokens of each name, as it stands within a sentence."""
        tokenizer = self.segmenter.backbone.tokenizer
        rows = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
        return torch.stack([table[row].mean(0) for row in rows])

    def dataset(self, data: Kind, length: int, seed: int) -> ViewMasks:
        return ViewMasks(data.config, seed, length)

    collate = PhotoCodes.collate

    def forward(self, batch: dict) -> dict[str, Tensor]:
        backbone = self.segmenter.backbone
        pixels = backbone.pixels.batch(batch["images"], self.segmenter.device, torch.float32)
        with torch.no_grad():
            features = tower_features(self.segmenter, pixels)
        projected = self.projector(features).float()
        grid = int(projected.shape[1] ** 0.5)
        shares = patch_shares(framed_masks(batch["masks"], backbone.pixels.size), grid)
        named = torch.full(projected.shape[:2], -1)
        for share, of, name in zip(shares, batch["of"], batch["names"], strict=True):
            if name >= 0:
                named[of][share > COVERED] = name
        patches, truth = projected.flatten(0, 1), named.flatten()
        known = truth >= 0
        losses, right = self.losses(patches[known], self.names[0], truth[known])
        # classes where no mask says what is there
        weight, bias = self.classifier
        head = features[..., -(POSITIONS + 4 * self.fine() + HEAD) :][..., :HEAD].float()
        chance = (head.flatten(0, 1)[~known] @ weight.T + bias).softmax(-1)
        sure, label = chance.max(-1)
        seen = sure > SURE
        other, _ = self.losses(patches[~known][seen], self.labels[0], label[seen])
        loss = losses + self.classes * other
        return {"loss": loss, "names": losses.detach(), "classes": other.detach(), "right": right}

    def fine(self) -> int:
        """Channels of the tower's stage of stride 16, of which a patch has four."""
        model: Any = self.segmenter.backbone.model
        tower = model.model.vision_tower
        return tower.stages[4][-1].project.out_channels

    def losses(self, patches: Tensor, names: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of patches `[n, d]` with names `truth` (their numbers), and the share right."""
        if not len(truth):
            return patches.sum() * 0.0, torch.zeros(())
        middle = self.middle[0].to(patches)
        wanted = names.to(patches) - middle
        mine = patches - middle
        likeness = nn.functional.normalize(mine, dim=-1) @ nn.functional.normalize(wanted, dim=-1).T
        counts = torch.bincount(truth, minlength=len(names)).clamp(min=1).float()
        weights = counts.rsqrt()[truth]  # many patches of one thing count less each
        weights = weights / weights.sum()
        entropy = nn.functional.cross_entropy(likeness / TEMPERATURE, truth, reduction="none")
        distance = (mine - wanted[truth]).square().mean(-1) / wanted.square().mean()
        right = (likeness.argmax(-1) == truth).float().mean()
        return (weights * (entropy + self.near * distance)).sum(), right


OBJECTIVE = Legible
