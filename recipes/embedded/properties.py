"""The language stage with auxiliary losses on what the language model's states contain.

A question such as "the thing that keeps you dry" is answered by a match of two facts: the property
it asks for, and the properties of each object in the image. From answers alone, a small language
model memorises many pairs of a wording and an object, and cannot notice that nothing matches. Here
the states of a middle layer must contain both facts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import Scenes, pack_of
from reasonseg.datasets.synthetic.sprites import Sprite
from reasonseg.datasets.synthetic.wordings import FRAMES
from reasonseg.errors import InputError
from reasonseg.segmenters.base import Segmenter
from reasonseg.segmenters.prompting import distinct
from reasonseg.structures.sample import Sample
from recipes.embedded.aimed import Aimed
from recipes.embedded.patches import MOST as STANDING
from recipes.embedded.patches import owners, standing_read, stood

NOT_ASKED, SWAPPED = -1, "swapped"
FEW = 10.0  # about the number of facts of an object; the sum of their losses is divided by it
BACKGROUND = 0.25  # weight of a background patch; a foreground patch has 1
MOST = 8  # larger numbers of objects are not distinguished
COUNTED = ("number", "coming", "name", "kind")  # losses that `counting` weighs


class Known(NamedTuple):
    """A sample with its labels.

    `things` has the object of each patch (0 background), `stand` its counts among similar objects
    (`standing`). `about` is the property and `number` the number of objects in the question
    (`NOT_ASKED` where it asks for no property, or for one object).
    """

    sample: Sample
    things: np.ndarray
    stand: np.ndarray
    about: int
    number: int


class Properties(Aimed):
    """`Aimed` on drawn scenes, with linear heads on states of the language model.

    The heads are dropped after training.

    - `knowing`: weight of the heads on the states after layer `layer` (1 or more): at each patch,
      the facts of its object (name, kind, properties); at the end of a question for a property,
      this property.
    - `swapped`: share of those questions that are replaced by a question for another property.
      Their answers are trained only from the place where the property is stated. What follows
      depends on that property and the image, so no wording can be memorised.
    - `counting`: weight of two more heads: at each patch, the `standing` of its object; one layer
      higher, how many masks follow, at the end of a question for several objects and around each
      `<SEG>`.

    Other options: see `Aimed`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        knowing: float = 0.5,
        layer: int = 2,
        swapped: float = 0.0,
        counting: float = 0.0,
        **options,
    ):
        super().__init__(segmenter, **options)
        backbone = segmenter.backbone
        if backbone.patch_encoder is None or backbone.pixels.aspect != "pad":
            raise InputError(
                "objective properties is for backbone llava with pixels.aspect pad, which reads "
                "whole images"
            )
        if not 1 <= layer <= len(backbone.layers):
            raise InputError(
                f"options.layer {layer}: the language model has layers 1 to {len(backbone.layers)}"
            )
        self.knowing, self.layer, self.swapped, self.counting = knowing, layer, swapped, counting
        sprites = pack_of("")
        facts, held = facts_of(sprites)
        # 0 is the background
        self.numbers = {sprite.name: i + 1 for i, sprite in enumerate(sprites)}
        self.properties = {fact: i for i, fact in enumerate(facts)}
        self.register_buffer("held", torch.from_numpy(held).float(), persistent=False)
        width = backbone.width
        self.norm = nn.LayerNorm(width)
        self.shown, self.asked = nn.Linear(width, len(facts)), nn.Linear(width, len(facts))
        nn.init.constant_(self.shown.bias, -4.0)  # few facts are true
        self.row, self.number = nn.Linear(width, 4 * STANDING), nn.Linear(width, MOST + 1)
        self.seen: list[torch.Tensor] = []

    def dataset(self, data: Kind, length: int, seed: int) -> Dataset:
        grid = self.segmenter.backbone.grid
        if (
            data.kind != "scenes"
            or data.config.sprites
            or data.config.withheld
            or "shown" in data.config.levels
        ):
            raise InputError(
                "objective properties asks about drawn scenes: data.kind scenes, no sprites, not "
                "withheld, no level shown"
            )
        if data.config.size % grid:
            raise InputError(
                f"data.size {data.config.size}: objective properties needs a multiple of {grid}, "
                "the tower's patches"
            )
        return _Known(
            data.config.training(length, seed), self.numbers, self.properties, grid, self.swapped
        )

    def collate(self, items: list[Known]) -> dict:
        samples, things, stand, about, number = zip(*items, strict=True)
        known = {"things": np.stack(things), "stand": np.stack(stand)}
        return {
            "samples": list(samples),
            **known,
            "about": torch.tensor(about),
            "number": torch.tensor(number),
        }

    def counts(self, batch: dict) -> dict[str, int]:
        """Empty: the losses of the heads are averaged over a batch."""
        return {}

    def given(self, samples: list[Sample]) -> list[int]:
        """The number of tokens up to the colon, in answers to swapped questions; 0 in others."""
        backbone = self.segmenter.backbone
        leads = [
            s.truth.text.rsplit(": ", 1)[0] + ":" if s.level == SWAPPED else "" for s in samples
        ]
        return [len(backbone.text_ids(lead)) for lead in leads]

    def forward(self, batch: dict, counts: dict | None = None) -> dict[str, torch.Tensor]:
        layers = self.segmenter.backbone.layers
        higher = min(self.layer, len(layers) - 1)
        self.seen = []
        hooks = [
            layers[i].register_forward_hook(lambda module, inputs, output: self.seen.append(output))
            for i in (self.layer - 1, higher)
        ]
        try:
            parts = super().forward(batch, counts)
        finally:
            for hook in hooks:
                hook.remove()
        known = self.known(*(self.norm(states.float()) for states in self.seen), batch)
        self.seen = []
        parts["loss"] = parts["loss"] + self.knowing * (known["shown"] + known["asked"])
        parts["loss"] = parts["loss"] + self.counting * sum(known[part] for part in COUNTED)
        return parts | {name: value.detach() for name, value in known.items()}

    def known(
        self, states: torch.Tensor, higher: torch.Tensor, batch: dict
    ) -> dict[str, torch.Tensor]:
        """Losses of the heads on states `[rows, t, width]` and on those a layer higher.

        Also accuracies: of `asked` (`heard`), `number` (`counted`), `coming` (`followed`) and of
        all facts of a patch (`facts`).
        """
        backbone, samples = self.segmenter.backbone, batch["samples"]
        images, row = distinct([s.query.image for s in samples])
        first = [row.index(r) for r in range(len(images))]
        start = backbone.prompt_ids(samples[0].query).index(backbone.image_id)
        patches = states[:, start : start + backbone.patches]
        shown = torch.from_numpy(batch["things"][first]).to(states.device)
        places = self.ends(samples, row, start)
        ends, rows = (
            torch.tensor(places, device=states.device),
            torch.tensor(row, device=states.device),
        )
        parts = self.patches_read(
            patches, shown, torch.from_numpy(batch["stand"][first]).to(states.device)
        )
        parts["asked"], parts["heard"] = _chosen(self.asked, states[rows, ends], batch["about"])
        parts["number"], parts["counted"] = _chosen(
            self.number, higher[rows, ends], batch["number"]
        )
        of, at, count = self.coming(samples, places, batch["number"].tolist())
        parts["coming"], parts["followed"] = _chosen(self.number, higher[rows[of], at], count)
        return parts

    def patches_read(
        self, patches: torch.Tensor, things: torch.Tensor, stand: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of the heads on patches `[n, t, width]`.

        The targets are their objects `[n, t]` and the `standing` of these `[n, t, 4]`.
        """
        truth, logits = self.held[things], self.shown(patches)
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1) / FEW
        weight = torch.where(things > 0, 1.0, BACKGROUND)
        right = ((logits > 0) == (truth > 0)).all(-1)[things > 0].float().mean()
        parts = standing_read(self.row(patches), stand, things > 0)
        return parts | {"shown": (each * weight).sum() / weight.sum(), "facts": right}

    def ends(self, samples: list[Sample], row: list[int], start: int) -> list[int]:
        """The end of each prompt in its packed row (see `Pack`), where the answer is predicted."""
        backbone = self.segmenter.backbone
        cut = start + backbone.patches
        filled = dict.fromkeys(row, cut)
        found = []
        for r, sample in zip(row, samples, strict=True):
            prompt = len(backbone.prompt_ids(sample.query)) - cut
            found.append(filled[r] + prompt - 1)
            filled[r] += prompt + len(backbone.answer_ids(sample.truth.text))
        return found

    def coming(
        self, samples: list[Sample], ends: list[int], numbers: list[int]
    ) -> tuple[torch.Tensor, ...]:
        """(sample, position in its row, masks that follow), for states before and at `<SEG>`."""
        backbone, found = self.segmenter.backbone, [(0, 0, NOT_ASKED)]  # never empty
        for k, (sample, end, number) in enumerate(zip(samples, ends, numbers, strict=True)):
            if number == NOT_ASKED:
                continue
            marks = [
                j
                for j, token in enumerate(backbone.answer_ids(sample.truth.text))
                if token == backbone.markers.seg
            ]
            for i, j in enumerate(marks):
                found += [
                    (k, end + j, max(number - i, 0)),
                    (k, end + j + 1, max(number - i - 1, 0)),
                ]
        return tuple(torch.tensor(column) for column in zip(*found, strict=True))


def _chosen(
    reader: nn.Module, states: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of a reader of states `[n, width]` where there is a truth `[n]`, and how
    often it is right.
    """
    truth = truth.to(states.device)
    logits = reader(states[truth != NOT_ASKED])
    truth = truth[truth != NOT_ASKED]
    if not len(truth):
        return logits.sum(), logits.new_zeros(())
    return F.cross_entropy(logits, truth), (logits.argmax(-1) == truth).float().mean()


def facts_of(sprites: list[Sprite]) -> tuple[list[str], np.ndarray]:
    """All facts, and a bool array `[1 + sprites, facts]` of those true for each sprite.

    The first row is the background, which has none.
    """
    true = [{f"name {s.name}", f"kind {s.category}", *s.properties} for s in sprites]
    facts = sorted(set().union(*true))
    return facts, np.array([[False] * len(facts), *([fact in t for fact in facts] for t in true)])


class _Known(Dataset):
    """Drawn scenes with what is known of each sample."""

    def __init__(
        self,
        scenes: Scenes,
        numbers: dict[str, int],
        properties: dict[str, int],
        grid: int,
        swapped: float = 0.0,
    ):
        self.scenes, self.numbers, self.properties, self.grid, self.swapped = (
            scenes,
            numbers,
            properties,
            grid,
            swapped,
        )

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> Known:
        sample, scene, question = self.scenes.known(i)
        things = np.array([0, *(self.numbers[thing.name] for thing in scene.objects)])
        owner = owners(scene, self.grid)
        about = self.properties.get(question.about, NOT_ASKED)
        number = min(len(question.targets), MOST) if question.level == "multi" else NOT_ASKED
        rng = np.random.default_rng([self.scenes.config.seed, 6, i])
        if about != NOT_ASKED and rng.random() < self.swapped:
            sample, about = self._swapped(sample, rng), NOT_ASKED
        return Known(sample, things[owner], stood(scene, owner), about, number)

    def _swapped(self, sample: Sample, rng: np.random.Generator) -> Sample:
        asker = self.scenes.asker
        properties = list(asker.knowledge.properties.values())
        words = asker.wordings(properties[rng.integers(len(properties))], rng)
        text = FRAMES[rng.integers(len(FRAMES))].format(words[rng.integers(len(words))])
        return replace(
            sample, query=replace(sample.query, text=text[0].upper() + text[1:]), level=SWAPPED
        )


OBJECTIVE = Properties
