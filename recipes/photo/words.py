"""The language stage on photographs: the prompt of each `<SEG>` is drawn to the code that is
typical of its name, at the place of its mask.

A typical code can be told from the name, and the place from the picture; the code of the one thing
in the picture could not be learned in the time that two cores have.
"""

from __future__ import annotations

import torch

from reasonseg.datasets.photographs.knowledge import things
from reasonseg.nn.efficientnet_lite import POSITIONS
from reasonseg.nn.features import Features
from reasonseg.nn.losses import mask_losses
from reasonseg.nn.prompt import Prompt
from reasonseg.segmenters.base import Segmenter
from reasonseg.training.objectives.base import box_in, mean_overlap
from recipes.embedded.aimed import Aimed
from recipes.embedded.codes import Coder
from recipes.photo.codes import enlarged, half, inside


class PhotoWords(Aimed):
    """`recipes.embedded.aimed` and its options, with typical codes (`recipes.photo.codes`)."""

    needs = ("coder", "typical")

    def __init__(self, segmenter: Segmenter, coder: Coder, typical: torch.Tensor, **options: float):
        super().__init__(segmenter, coder, **options)
        self.typical = (typical.detach().clone(),)  # a tuple, so that it is not saved
        self.numbers = {name: k for k, name in enumerate(things())}
        self.names: list[str] = []  # of the masks of the batch

    def forward(self, batch: dict, counts: dict | None = None) -> dict[str, torch.Tensor]:
        worded = [s for s in batch["samples"] if s.query.text.strip()]
        self.names = [label for s in worded for label in s.truth.labels]
        return super().forward(batch, counts)

    def targets(self, patches: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """As `Aimed.targets`, with typical codes where the name has one."""
        wanted = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
        pooled = torch.einsum("mtw,mt->mw", self.coder.norm(patches), wanted)
        numbers = torch.tensor([self.numbers.get(n, -1) for n in self.names]).to(pooled.device)
        typical = self.typical[0].to(pooled)[numbers.clamp(min=0)]
        there = (numbers >= 0) & typical.any(1)
        what = torch.where(there[:, None], typical, pooled[:, :-POSITIONS])
        return self.coder.project(torch.cat([what, pooled[:, -POSITIONS:]], 1))

    def draw(
        self, encoded: Features, where: torch.Tensor, prompts: list[Prompt], truth: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Mask losses at half the size; a share `placed` of the masks from a box, as many from a
        click instead of words.
        """
        decoder, halved = self.segmenter.decoder, half(truth)
        size = (truth.shape[-2], truth.shape[-1])
        share = torch.rand(len(truth)) / max(self.placed, 1e-9)
        kinds = ["box" if f < 1 else "click" if f < 2 else "words" for f in share.tolist()]
        sums: dict[str, torch.Tensor] = {}
        for kind in dict.fromkeys(kinds):
            mine = [m for m, k in enumerate(kinds) if k == kind]
            places = {
                "words": lambda m: prompts[m],
                "box": lambda m: decoder.places([], [box_in(truth[m])], size),
                "click": lambda m: decoder.places([inside(truth[m])], [], size),
            }[kind]
            prompt = Prompt.joined([places(m) for m in mine])
            logits, predicted = decoder.decode(encoded, where[mine], prompt)
            parts = mask_losses(enlarged, logits, predicted, [halved[mine]], [0] * len(mine))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value * len(mine) / len(truth)
            if kind == "words":
                full = enlarged(logits.detach(), tuple(halved.shape[-2:]))
                self.overlap = mean_overlap(full, halved[mine])
        return sums


OBJECTIVE = PhotoWords
