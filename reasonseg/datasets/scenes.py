"""Drawn scenes as samples, with seven levels of questions and more.

A sample is a pure function of (split, index, seed).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from reasonseg.datasets.base import Name
from reasonseg.datasets.synthetic.drawing import Scene, choose_sprites, draw_scene, draw_shape
from reasonseg.datasets.synthetic.families import draw_family, union_of
from reasonseg.datasets.synthetic.knowledge import Knowledge
from reasonseg.datasets.synthetic.questions import LEVELS, Asker, Question
from reasonseg.datasets.synthetic.sprites import Sprite, default_pack, load_pack
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query, Reference
from reasonseg.structures.sample import Sample

SPLITS = {"train": 1, "val": 2, "test": 3}
SHOWN = ("alike", "shown")  # levels with reference images
SEVEN = tuple(level for level in LEVELS if level not in ("novel", "missing", *SHOWN))
Drawn = tuple[Scene, list[Scene]]
KEPT = 64  # evaluation samples in memory
MAX_TRIES = 400  # scenes tried for a question of a level before an error
NAMES: dict[str, Name] = {}  # `eval scenes` has its own report


@dataclass(frozen=True)
class Config:
    """Settings of the scenes.

    `size` is the longer side in pixels; `sprites` is the folder of a sprite pack (empty: the emoji
    of the system). Training draws `per_scene` questions about each scene, with the relative
    probabilities `mix` of the levels. Other splits have one question per scene and take `levels` in
    turn. `same_shape` scenes in a row have one image shape, so that batches need no grouping.
    Levels `alike` and `shown` need `shown` other scenes (1 or more) with the same objects; a
    fraction `labelled` (0..1) of the samples gives their references a label. `withheld`: draw only
    objects that are withheld from training.
    """

    split: str = "train"
    count: int = 700
    seed: int = 0
    size: int = 336
    levels: tuple[str, ...] = SEVEN
    per_scene: int = 1
    same_shape: int = 1
    mix: dict[str, float] = field(default_factory=dict)
    sprites: str = ""
    shown: int = 0
    labelled: float = 0.0
    withheld: bool = False

    def build(self) -> Scenes:
        """The data set. Raises `InputError` for an unknown split or level."""
        return Scenes(self)

    def training(self, length: int, seed: int) -> Scenes:
        """`length` training samples, a pure function of the seed."""
        return replace(self, count=length, seed=seed).build()

    @classmethod
    def example(cls) -> Config:
        """A small data set, for tests."""
        return cls("val", count=14, size=96)


def pack_of(sprites: str, withheld: bool = False) -> list[Sprite]:
    """The sprites of scenes.

    The emoji pack without the withheld classes (or, with `withheld`, only those), or all sprites of
    the pack in the folder `sprites`.
    """
    if sprites:
        return load_pack(sprites)
    knowledge = Knowledge.load()
    return [s for s in default_pack(knowledge) if knowledge.withheld(s.name) == withheld]


class Scenes:
    """Samples by index; `IndexError` at the length."""

    def __init__(self, config: Config):
        self.config = config
        if config.split not in SPLITS:
            raise InputError(f"no split {config.split!r}; there are {', '.join(SPLITS)}")
        if unknown := [level for level in (*config.levels, *config.mix) if level not in LEVELS]:
            raise InputError(f"no level {unknown[0]!r}; there are {', '.join(LEVELS)}")
        if needing := [level for level in config.levels if level in SHOWN and not config.shown]:
            raise InputError(f"level {needing[0]!r} needs references: shown is 0, give 1 or more")
        self.sprites = pack_of(config.sprites, config.withheld)
        self.asker = Asker(Knowledge.load(), self.sprites, config.split == "train")
        self._latest: tuple[int, Drawn] | None = None
        # cache of `_examined`: an evaluation reads each sample several times
        self._recent: dict[int, tuple[Drawn, Question]] = {}

    def __len__(self) -> int:
        return self.config.count

    def id(self, i: int) -> str:
        """The name of sample `i`."""
        return f"{self.config.split}-{i}"

    def __getitem__(self, i: int) -> Sample:
        return self.known(i)[0]

    def known(self, i: int) -> tuple[Sample, Scene, Question]:
        """Sample `i` with the scene and the question that it is made of."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        (scene, others), question = (
            self._trained(i) if self.config.split == "train" else self._examined(i)
        )
        masks = np.array([scene.objects[t].mask for t in question.targets], bool).reshape(
            -1, *scene.image.shape[:2]
        )
        labels = [scene.objects[t].name for t in question.targets]
        references = (
            self._references(i, scene.objects[question.targets[0]].sprite, others)
            if question.level in SHOWN
            else []
        )
        if question.level == "shown":
            masks, labels = np.any(masks, 0)[None], labels[:1]
        status = "found" if labels else "absent"
        truth = Answer(question.answer, masks, np.ones(len(masks)), labels, status)
        query = Query(scene.image, question.text, references)
        return Sample(query, truth, self.id(i), question.level), scene, question

    def _references(self, i: int, sprite: Sprite, others: list[Scene]) -> list[Reference]:
        named = np.random.default_rng([self.config.seed, 5, i]).random() < self.config.labelled
        marked = [(other.image, union_of(other, sprite)) for other in others]
        return [
            Reference(image, mask=mask, label=sprite.name if named else None)
            for image, mask in marked
            if mask.any()
        ]

    def _drawn(self, rng: np.random.Generator, shape: tuple[float, float] | None = None) -> Drawn:
        """A scene, and the other scenes with the same objects where `shown` is above 0."""
        if not self.config.shown:
            return draw_scene(rng, self.sprites, self.config.size, shape=shape), []
        chosen = choose_sprites(rng, self.sprites)
        return draw_family(rng, self.sprites, self.config.size, self.config.shown, chosen, shape)

    def _asked(
        self, rng: np.random.Generator, drawn: Drawn, split: str, level: str
    ) -> Question | None:
        """A question of a level about a scene, or None.

        Levels with references need another scene that shows the object.
        """
        question = self.asker.ask(rng, drawn[0], split, level)
        if question is None or level not in SHOWN:
            return question
        sprite = drawn[0].objects[question.targets[0]].sprite
        return (
            question
            if any(t.sprite is sprite for other in drawn[1] for t in other.objects)
            else None
        )

    def scene(self, i: int) -> Scene:
        """The scene of sample `i`."""
        return (self._trained(i) if self.config.split == "train" else self._examined(i))[0][0]

    def askable(self, level: str, tries: int = 100) -> bool:
        """Whether any of `tries` random scenes has a question of a level.

        A small sprite pack, or one without properties, may have none.
        """
        for attempt in range(tries):
            rng = np.random.default_rng([self.config.seed, 4, attempt])
            if self.asker.ask(rng, draw_scene(rng, self.sprites, 64), self.config.split, level):
                return True
        return False

    def _trained(self, i: int) -> tuple[Drawn, Question]:
        config = self.config
        number = i // config.per_scene
        # samples about one scene share the same array object, so that it is encoded once
        if self._latest is None or self._latest[0] != number:
            shape = draw_shape(
                np.random.default_rng([config.seed, 1, 1, number // config.same_shape])
            )
            rng = np.random.default_rng([config.seed, 1, 0, number])
            self._latest = number, self._drawn(rng, shape)
        drawn = self._latest[1]
        rng = np.random.default_rng([config.seed, 1, 2, i])
        chances = np.array([config.mix.get(level, 1.0) for level in config.levels])
        for _ in range(MAX_TRIES):
            level = config.levels[rng.choice(len(chances), p=chances / chances.sum())]
            if question := self._asked(rng, drawn, "train", level):
                return drawn, question
        raise InputError(
            f"scene {number} has no question of {', '.join(config.levels)}; allow more levels"
        )

    def _examined(self, i: int) -> tuple[Drawn, Question]:
        if i not in self._recent:
            if len(self._recent) >= KEPT:
                self._recent.pop(next(iter(self._recent)))
            self._recent[i] = self._searched(i)
        return self._recent[i]

    def _searched(self, i: int) -> tuple[Drawn, Question]:
        config = self.config
        level = config.levels[i % len(config.levels)]
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng([config.seed, SPLITS[config.split], 3, i, attempt])
            drawn = self._drawn(rng)
            if question := self._asked(rng, drawn, config.split, level):
                return drawn, question
        raise InputError(
            f"no {level!r} question was found in {MAX_TRIES} scenes; check that the sprite pack "
            "has properties"
        )
