"""Shared parts of data sets: their names in commands, training streams, LISA's question templates.

Each file of this folder is a kind of data set. Its `Config` holds the settings, such as where the
files are. `build()` returns samples by index (`IndexError` at the length); `training(length, seed)`
returns training samples, a pure function of (seed, index). `eval KIND` and `data check KIND` find a
data set by its file name, or by the names in its `NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from reasonseg.config.kinds import kind_module, kinds
from reasonseg.config.schema import dump, override, parse
from reasonseg.errors import InputError
from reasonseg.structures.sample import Sample

PER_PICTURE = 3  # consecutive questions about one image, as in LISA
TRIES = 50  # images tried in a row before an image without questions is an error


@dataclass(frozen=True)
class Name:
    """What a name of a data set means in commands.

    `fields` are the settings of its `Config` that the name implies; `splits` are the splits that
    `data check` reads. `evaluated` is False for data sets that are only for training: `eval` does
    not offer them.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train", "val", "test")
    evaluated: bool = True


@dataclass(frozen=True)
class NamedSet:
    """A data set with its name in commands: its class `Config` and the meaning of the name."""

    name: Name
    config: type

    def build(self, overrides: Sequence[str] = (), **given: Any) -> Any:
        """Its settings (a `Config`), with those of `given` that this data set has.

        `overrides` are `data.name=value`. Raises `InputError` for an override that this data set
        does not have, or of another type.
        """
        known = {field.name for field in fields(self.config)}
        tree = override({}, overrides)
        if other := sorted(set(tree) - {"data"}):
            raise InputError(f"no setting {other[0]!r} here; write data.name=value")
        parse(self.config, tree.get("data") or {}, "data")  # raises the errors
        values = {k: v for k, v in given.items() if k in known} | (tree.get("data") or {})
        return parse(self.config, dump(self.config(**self.name.fields)) | values, "data")


def named_sets(words: str | Sequence[str] = ()) -> dict[str, NamedSet]:
    """All data sets by name.

    Those of `words` that are dotted paths to a module are included. Raises `InputError` where a
    module cannot be imported.
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
    """A data set that `Stream` can draw training samples from."""

    @property
    def pictures(self) -> int:
        """Number of images that training draws from."""
        ...

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """`count` samples about one image; an empty list where there is nothing to ask about it.

        All of them share the same image array object, so that encoders run once.
        """
        ...


class Stream:
    """`length` samples: `PER_PICTURE` questions about a random image, then about the next one.

    Sample i is a pure function of (seed, i).
    """

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
            f"{TRIES} images in a row show nothing to ask for; look at them with `reasonseg "
            "data check`"
        )


def sample_indices(rng: np.random.Generator, count: int, of: int) -> list[int]:
    """`count` random indices below `of`; every index comes once before any is repeated."""
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
    """The validation question about a text, from LISA's templates.

    It starts with a space, as the prompt of the original code does.
    """
    return (SENTENCE if is_sentence else PHRASE).format(text)


def training_turn(
    rng: np.random.Generator, text: str, is_sentence: bool = False, marker: str = "<SEG>"
) -> tuple[str, str]:
    """A random (question, answer) about a text for training, from LISA's templates.

    `marker` is `<SEG>`, or `<REJ>` where nothing in the image matches.
    """
    questions = SENTENCES if is_sentence else PHRASES
    question = questions[rng.integers(len(questions))].format(text if is_sentence else text.lower())
    return question, ANSWERS[rng.integers(len(ANSWERS))].format(marker)
