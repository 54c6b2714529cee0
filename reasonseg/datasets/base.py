"""What data sets share: how commands name them, endless training samples, and LISA's question
templates.

A file of this folder is a kind of data set. Its `Config` says where the files lie; `build()` gives
samples by index (`IndexError` at the length), `training(length, seed)` samples to train on, a pure
function of (seed, index). `eval KIND` and `data check KIND` find it by its file name, or by the
names in its `NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from reasonseg.config.kinds import kind_module, kinds
from reasonseg.errors import InputError
from reasonseg.structures.sample import Sample

PER_PICTURE = 3  # questions on one picture in a row, as LISA has them
TRIES = 50  # pictures looked at for one with something to ask


@dataclass(frozen=True)
class Name:
    """A name by which commands know a data set.

    `fields` are settings of its `Config` that go with the name, `splits` those that `data check`
    looks for. `evaluated` off keeps training data out of `eval`.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train", "val", "test")
    evaluated: bool = True


@dataclass(frozen=True)
class NamedSet:
    """A data set as commands know it: its `Config`, and what goes with its name."""

    name: Name
    config: type

    def build(self, **given: Any) -> Any:
        """Its settings with what was `given`, as far as it has such settings."""
        known = {field.name for field in fields(self.config)}
        return self.config(**self.name.fields, **{k: v for k, v in given.items() if k in known})


def named_sets(words: str | Sequence[str] = ()) -> dict[str, NamedSet]:
    """Every data set by its name; those of `words` that are dotted paths to a module are taken
    too.
    """
    asked = (words,) if isinstance(words, str) else words
    dotted = [
        w for w in asked if "." in w and "/" not in w and not w.startswith("-") and "=" not in w
    ]
    found: dict[str, NamedSet] = {}
    for kind in [*kinds("datasets"), *dotted]:
        module = kind_module("datasets", kind, "data set")
        for name, entry in getattr(module, "NAMES", {kind: Name()}).items():
            found[name] = NamedSet(entry, module.Config)
    return found


class TrainingData(Protocol):
    """A data set that can be trained on."""

    @property
    def pictures(self) -> int:
        """Number of images that training draws from."""
        ...

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """`count` samples about a picture, sharing its image (the very object); none where it
        shows nothing to ask for.
        """
        ...


class Stream:
    """`length` samples: a picture at random, `PER_PICTURE` questions about it, the next."""

    def __init__(self, data: TrainingData, length: int, seed: int):
        self.data, self.length, self.seed = data, length, seed
        self._latest: tuple[int, list[Sample]] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        number, place = divmod(i, PER_PICTURE)
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self._drawn(number)
        return self._latest[1][place]

    def _drawn(self, number: int) -> list[Sample]:
        for attempt in range(TRIES):
            rng = np.random.default_rng([self.seed, number, attempt])
            if samples := self.data.training_samples(
                int(rng.integers(self.data.pictures)), PER_PICTURE, rng
            ):
                return samples
        raise InputError(
            f"{TRIES} pictures in a row show nothing to ask for; look at them with `reasonseg "
            "data check`"
        )


def sample_indices(rng: np.random.Generator, count: int, of: int) -> list[int]:
    """`count` indices below `of`: all of them once before any comes again."""
    order = rng.permutation(of)
    return [int(order[k % of]) for k in range(count)]


SENTENCE = " {} Please output segmentation mask."
PHRASE = " What is {} in this image? Please output segmentation mask."

PHRASES = (
    "Can you segment the {} in this image?",
    "Please segment the {} in this image.",
    "What is {} in this image? Please respond with segmentation mask.",
    "What is {} in this image? Please output segmentation mask.",
)
SENTENCES = ("{} Please respond with segmentation mask.", "{} Please output segmentation mask.")
EXPLAIN = (
    "Please output segmentation mask and explain why.",
    "Please output segmentation mask and explain the reason.",
    "Please output segmentation mask and give some explanation.",
)
ANSWERS = (
    "It is {}.",
    "Sure, {}.",
    "Sure, it is {}.",
    "Sure, the segmentation result is {}.",
    "{}.",
)


def validation_question(text: str, is_sentence: bool) -> str:
    """The question of a text in validation, with the space in front that the reference's prompt
    has.
    """
    return (SENTENCE if is_sentence else PHRASE).format(text)


def training_turn(
    rng: np.random.Generator, text: str, is_sentence: bool = False, marker: str = "<SEG>"
) -> tuple[str, str]:
    """(question, answer) of a text in training; `marker` `<REJ>` where nothing fits."""
    questions = SENTENCES if is_sentence else PHRASES
    question = questions[rng.integers(len(questions))].format(text if is_sentence else text.lower())
    return question, ANSWERS[rng.integers(len(ANSWERS))].format(marker)
