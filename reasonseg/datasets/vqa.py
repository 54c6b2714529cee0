"""LLaVA-Instruct: conversations about COCO pictures, without masks; they keep a model's tongue
while it learns to segment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reasonseg.datasets.base import Name, Stream
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

FILE, PICTURES = "llava_dataset/llava_instruct_150k.json", "coco/train2017"
NAMES = {"vqa": Name(splits=("train",), evaluated=False)}


@dataclass(frozen=True)
class Config:
    """`root` is LISA's dataset folder."""

    root: str = ""
    file: str = FILE

    def build(self) -> Conversations:
        """The data set."""
        return Conversations(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """It has none of its own: the files are the user's."""
        return None


class Conversations:
    """One sample a conversation: its last turn, the earlier ones as history. Training takes
    turns at random.
    """

    def __init__(self, config: Config):
        self.config, self.file = config, Path(config.root) / config.file
        if not self.file.is_file():
            raise InputError(f"{config.root or '.'} has no LLaVA-Instruct; expected {self.file}")
        try:
            tree = json.loads(self.file.read_text(encoding="utf-8"))
            self.entries = [(str(e["image"]), rounds(e["conversations"])) for e in tree]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.file} is not a list of conversations about images: {error!r}"
            ) from None
        if empty := [k for k, (_, turns) in enumerate(self.entries) if not turns]:
            raise InputError(f"{self.file}: conversation {empty[0]} has no question with an answer")

    @property
    def pictures(self) -> int:
        """How many conversations."""
        return len(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`."""
        return f"vqa-{i}"

    def group(self, i: int) -> str:
        """Samples on one picture have the same group."""
        return self.entries[i][0]

    def __getitem__(self, i: int) -> Sample:
        return self._sample(i, self._image(i), len(self.entries[i][1]) - 1)

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """Turns of a conversation, each with what was said before it."""
        image = self._image(picture)
        return [
            self._sample(picture, image, int(rng.integers(len(self.entries[picture][1]))))
            for _ in range(count)
        ]

    def _image(self, i: int) -> np.ndarray:
        return read_image(Path(self.config.root) / PICTURES / Path(self.entries[i][0]).name)

    def _sample(self, i: int, image: np.ndarray, turn: int) -> Sample:
        turns = self.entries[i][1]
        question, answer = turns[turn]
        truth = Answer(answer, np.zeros((0, *image.shape[:2]), bool), np.zeros(0), [], "no_seg")
        return Sample(
            Query(image, question, history=tuple(turns[:turn])), truth, f"{self.id(i)}-{turn}", ""
        )


def rounds(said: list[dict]) -> list[tuple[str, str]]:
    """(question, answer) pairs; the place of the image is taken out of the question."""
    turns = [str(t["value"]).replace("<image>", "").strip() for t in said]
    kinds = [t["from"] for t in said]
    pairs = zip(range(0, len(said), 2), range(1, len(said), 2), strict=False)
    return [
        (turns[a], turns[b])
        for a, b in pairs
        if (kinds[a], kinds[b]) == ("human", "gpt") and turns[a] and turns[b]
    ]
