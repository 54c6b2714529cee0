"""Annotated photographs as samples: questions with true answers, made from masks and names.

Training sees random cuts of the photographs, with things of others pasted in; evaluation the
photographs as they are. A sample is a pure function of (split, index, seed).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from reasonseg.datasets.base import Name
from reasonseg.datasets.photographs.questions import LEVELS, PhotoAsker, Question
from reasonseg.datasets.photographs.records import Record, records
from reasonseg.datasets.photographs.views import View, plain_view, varied_view
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

NAMES: dict[str, Name] = {}  # `eval photos` has its own report
TRIES = 40  # views in a row without a question before an error
# how often training takes each set of photographs
SETS = {"coco": 0.74, "clothing": 0.18, "davis": 0.02, "things": 0.06}


@dataclass(frozen=True)
class Config:
    """Settings of the photographs.

    `root` holds one folder a set (`index.json`, `images/`, `masks/`); `size` is the side of the
    square views of training. Training asks `per_photo` questions about each view, with the relative
    probabilities `mix` of the levels, and pastes other things into a share `paste` (0..1) of the
    views. `val` asks `per_photo` questions of each level about each photograph.
    """

    root: str = ""
    split: str = "val"
    count: int = 700
    seed: int = 0
    size: int = 512
    levels: tuple[str, ...] = LEVELS
    per_photo: int = 8
    mix: dict[str, float] = field(default_factory=dict)
    paste: float = 0.4

    def build(self) -> Photos | TrainingPhotos:
        """The data set. Raises `InputError` where there are no photographs."""
        if unknown := [level for level in (*self.levels, *self.mix) if level not in LEVELS]:
            raise InputError(f"data.levels: {unknown[0]!r} is not one of {', '.join(LEVELS)}")
        return TrainingPhotos(self) if self.split == "train" else Photos(self)

    def training(self, length: int, seed: int) -> TrainingPhotos:
        """`length` training samples, a pure function of the seed."""
        return TrainingPhotos(replace(self, count=length, seed=seed, split="train"))

    @classmethod
    def example(cls) -> None:
        """None: its photographs are the user's."""
        return None


class Views:
    """Random views for training: view `i` is a pure function of (seed, i)."""

    def __init__(self, config: Config):
        self.config = config
        by_set: dict[str, list[Record]] = {}
        for record in records(config.root, "train"):
            by_set.setdefault(record.set, []).append(record)
        self.by_set = by_set
        self.often = Counter(n for of in by_set.values() for record in of for n in record.names)
        self.sets = [name for name in SETS if name in by_set]
        chances = np.array([SETS[name] for name in self.sets])
        self.chances = chances / chances.sum()
        self.pasted = [*by_set.get("coco", ()), *by_set.get("things", ()), *by_set.get("davis", ())]

    def record(self, rng: np.random.Generator) -> Record:
        """A random photograph."""
        mine = self.by_set[self.sets[rng.choice(len(self.sets), p=self.chances)]]
        return mine[int(rng.integers(len(mine)))]

    def view(self, rng: np.random.Generator) -> View:
        """A random view of a random photograph."""
        count = int(rng.integers(1, 4))
        others = [self.pasted[int(rng.integers(len(self.pasted)))] for _ in range(count)]
        return varied_view(self.record(rng), self.config.size, rng, others, self.config.paste)


class TrainingPhotos:
    """`count` training samples; `per_photo` in a row are about one view."""

    def __init__(self, config: Config):
        self.config, self.views = config, Views(config)
        mix = config.mix or dict.fromkeys(config.levels, 1.0)
        self.levels = list(mix)
        self.chances = np.array(list(mix.values())) / sum(mix.values())
        self._latest: tuple[int, list[Sample]] | None = None

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number, place = divmod(i, self.config.per_photo)
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self._drawn(number)
        return self._latest[1][place]

    def _drawn(self, number: int) -> list[Sample]:
        for attempt in range(TRIES):
            rng = np.random.default_rng([self.config.seed, 31, number, attempt])
            view = self.views.view(rng)
            asker, asked = PhotoAsker(view, rng, often=self.views.often), list[Question]()
            for _ in range(4 * self.config.per_photo):
                level = self.levels[rng.choice(len(self.levels), p=self.chances)]
                question = asker.ask(level)
                if question is not None and question.text not in {q.text for q in asked}:
                    asked.append(question)
                if len(asked) == self.config.per_photo:
                    return [sample_of(q, view, f"{number}-{k}") for k, q in enumerate(asked)]
        raise InputError(f"{TRIES} views of {self.config.root} in a row show nothing to ask for")


class Photos:
    """The questions about the photographs of a split as they are."""

    def __init__(self, config: Config):
        self.config = config
        self.records = records(config.root, config.split)
        self.order = [
            (number, level, k)
            for k in range(config.per_photo)
            for level in config.levels
            for number in range(len(self.records))
        ]
        self.found: list[tuple[int, str, int]] = []
        self._views: dict[int, View] = {}
        self._list()

    def _list(self) -> None:
        texts: set[tuple[int, str]] = set()
        for number, level, k in self.order:
            question = self._question(number, level, k)
            if question is not None and (number, question.text) not in texts:
                texts.add((number, question.text))
                self.found.append((number, level, k))
                if len(self.found) >= self.config.count:
                    break

    def _question(self, number: int, level: str, k: int) -> Question | None:
        rng = np.random.default_rng([self.config.seed, 32, number, LEVELS.index(level), k])
        return PhotoAsker(self._view(number), rng, training=False).ask(level)

    def _view(self, number: int) -> View:
        if number not in self._views:
            if len(self._views) > 200:
                self._views.clear()
            self._views[number] = plain_view(self.records[number], self.config.size)
        return self._views[number]

    def __len__(self) -> int:
        return len(self.found)

    def id(self, i: int) -> str:
        """A name of sample `i` that does not change."""
        number, level, k = self.found[i]
        return f"{self.records[number].id}/{level}-{k}"

    def __getitem__(self, i: int) -> Sample:
        number, level, k = self.found[i]
        question = self._question(number, level, k)
        assert question is not None
        return sample_of(question, self._view(number), self.id(i), cut=True)


def sample_of(question: Question, view: View, name: str, cut: bool = False) -> Sample:
    """A question as a sample; `cut`: without the padding of the view."""
    high, wide = view.content if cut else view.image.shape[:2]
    masks = np.zeros((len(question.masks), high, wide), bool)
    for row, mask in zip(masks, question.masks, strict=True):
        row[:] = mask[:high, :wide]
    status = "found" if len(masks) else "absent"
    labels = [question.names[min(k, len(question.names) - 1)] for k in range(len(masks))]
    truth = Answer(question.answer, masks, np.ones(len(masks), np.float32), labels, status)
    image = view.image[:high, :wide] if cut else view.image
    ignored = view.void[:high, :wide] if view.void.any() else None
    return Sample(Query(image, question.text), truth, name, question.level, ignored)
