"""The reference prompter's stage on photographs: a thing that is shown in other photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.datasets.photographs.knowledge import thing
from reasonseg.datasets.photographs.views import View, varied_view
from reasonseg.datasets.photos import Config, Views
from reasonseg.datasets.synthetic.shown_families import mark
from reasonseg.nn.efficientnet_lite import POSITIONS
from reasonseg.segmenters.base import Segmenter
from reasonseg.training.objectives.base import kept
from reasonseg.training.objectives.references import References

LEAST = 0.004  # of the picture: smaller things are no good examples
MOST = 3  # things of one episode


class Episodes(Dataset):
    """Episode `i` of a seed: a view that is asked about, and others that show the same things."""

    def __init__(self, config: Config, shown: int, seed: int, length: int):
        self.views, self.shown, self.seed, self.length = Views(config), shown, seed, length
        self.size, self.paste = config.size, config.paste
        found: dict[str, list] = {}
        for records in self.views.by_set.values():
            for record in records:
                for name in {*record.names, *(["person"] if record.set == "clothing" else [])}:
                    found.setdefault(name, []).append(record)
        self.of = {
            n: r for n, r in found.items() if len(r) > 1 and n not in ("null", "accessories")
        }
        self.names = sorted(self.of)
        weights = np.array([min(len(self.of[n]), 12) ** 0.5 for n in self.names])
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        for attempt in range(60):
            rng = np.random.default_rng([self.seed, 51, i, attempt])
            if (episode := self._drawn(rng)) is not None:
                return episode
        raise RuntimeError("60 episodes in a row show nothing twice")

    def _drawn(self, rng: np.random.Generator) -> dict | None:
        name = self.names[rng.choice(len(self.names), p=self.chances)]
        count = int(rng.integers(1, self.shown + 1))
        pool = self.of[name]
        chosen = [pool[int(k)] for k in rng.permutation(len(pool))[: count + 1]]
        views = [self._view(record, rng) for record in chosen]
        asked, others = views[0], views[1:]
        names = [name, *(o.name for o in asked.objects if o.name and not o.stuff)]
        things = []
        for wanted in dict.fromkeys(names):
            truth = _union(asked, wanted)
            marked = [
                (k, mask)
                for k, view in enumerate(others)
                if (mask := _union(view, wanted)).mean() > LEAST
            ]
            if truth.mean() > LEAST / 2 and marked and len(things) < MOST:
                said = (wanted, *thing(wanted).also)
                label = wanted if rng.random() < 0.7 else said[int(rng.integers(len(said)))]
                references = [(k, mark(rng, others[k].image, m)) for k, m in marked]
                things.append(
                    {"name": wanted, "label": label, "mask": truth, "references": references}
                )
        if not things:
            return None
        return {"pictures": [v.image for v in views], "things": things}

    def _view(self, record, rng: np.random.Generator) -> View:
        pasted = self.views.pasted
        others = [pasted[int(rng.integers(len(pasted)))] for _ in range(2)]
        return varied_view(record, self.size, rng, others, self.paste)


def _union(view: View, name: str) -> np.ndarray:
    found = [o.mask for o in view.objects if o.name == name]
    return np.logical_or.reduce(found) if found else np.zeros(view.image.shape[:2], bool)


class PhotoExamples(References):
    """`references` on photographs; its options, and `coder`: a file of an earlier stage.

    With a coder, the prompter begins as it: patches are compared by their codes, and the token of
    the prototype is the code of what is shown, without its place.
    """

    def __init__(self, segmenter: Segmenter, coder: str = "", **options):
        super().__init__(segmenter, **options)
        if coder:
            begin(segmenter.references, kept("coder", coder))

    def dataset(self, data: Kind, length: int, seed: int) -> Episodes:
        return Episodes(data.config, self.shown, seed, length)


@torch.no_grad()
def begin(prompter: Any, found: dict[str, torch.Tensor]) -> None:
    """Starts a reference prompter as the coder of an earlier stage."""
    weight = found["coder.project.weight"] * found["coder.norm.weight"]
    weight[:, -POSITIONS:] = 0
    prompter.visual_projection.weight.copy_(weight)
    size = len(weight) ** 0.5  # the length of a code; features under the mask are unit vectors
    prompter.code.weight.copy_(torch.eye(*prompter.code.weight.shape) * size)
    prompter.code.bias.zero_()


OBJECTIVE = PhotoExamples
