"""LLaVA-Instruct: conversations about COCO images, without masks.

They keep a model's ability to answer in words while it is trained to segment.
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
    """Settings: `root` is LISA's dataset folder, `file` the JSON file below it."""

    root: str = ""
    file: str = FILE

    def build(self) -> Conversations:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return Conversations(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """None: the data set needs the user's files, so it has no example."""
        return None


class Conversations:
    """One sample per conversation: its last turn, with the earlier turns as history.

    Training takes turns at random.
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
        """Number of conversations."""
        return len(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`."""
        return f"vqa-{i}"

    def group(self, i: int) -> str:
        """The group of sample `i`: samples about one image have the same group."""
        return self.entries[i][0]

    def __getitem__(self, i: int) -> Sample:
        return self._sample(i, self._image(i), len(self.entries[i][1]) - 1)

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """Training samples: random turns of one conversation, each with the turns before it."""
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
    """The (question, answer) pairs of a conversation; `<image>` is removed from the questions."""
    turns = [str(t["value"]).replace("<image>", "").strip() for t in said]
    kinds = [t["from"] for t in said]
    pairs = zip(range(0, len(said), 2), range(1, len(said), 2), strict=False)
    return [
        (turns[a], turns[b])
        for a, b in pairs
        if (kinds[a], kinds[b]) == ("human", "gpt") and turns[a] and turns[b]
    ]
