"""PACO-LVIS and PASCAL-Part: COCO files of objects and their parts; a question asks for one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from reasonseg.datasets.base import Name, Stream, sample_indices, training_turn, validation_question
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.markers import FORCED
from reasonseg.structures.polygons import coco_mask
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

LAYOUTS = {  # (annotations, images) below LISA's dataset folder
    "paco_lvis": ("vlpart/paco/annotations/paco_lvis_v1_train.json", "coco"),
    "pascal_part": (
        "vlpart/pascal_part/train.json",
        "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages",
    ),
}
NAMES = {name: Name({"name": name}, ("train",), evaluated=False) for name in LAYOUTS}


@dataclass(frozen=True)
class Config:
    """Settings: `root` is LISA's dataset folder, `name` the data set in it."""

    root: str = ""
    name: Literal["paco_lvis", "pascal_part"] = "paco_lvis"

    def build(self) -> Parts:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return Parts(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """None: the data set needs the user's files, so it has no example."""
        return None


class Parts:
    """One sample per annotation, images in the order of the file.

    Images without annotations are left out.
    """

    def __init__(self, config: Config):
        self.config = config
        self.file, self.folder = (Path(config.root) / place for place in LAYOUTS[config.name])
        if not self.file.is_file():
            raise InputError(f"{config.root or '.'} has no {config.name}; expected {self.file}")
        try:
            tree = json.loads(self.file.read_text(encoding="utf-8"))
            self.names = {c["id"]: spelled(c["name"]) for c in tree["categories"]}
            self.files = {i["id"]: i["file_name"] for i in tree["images"]}
            of: dict[int, list[dict]] = {}
            for a in tree["annotations"]:
                _ = self.names[a["category_id"]], self.files[a["image_id"]], a["segmentation"]
                of.setdefault(a["image_id"], []).append(a)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.file} is not a COCO file of images, annotations and categories: {error!r}"
            ) from None
        self.shown = [(number, of[number]) for number in self.files if number in of]
        self.entries = [(k, a) for k, (_, mine) in enumerate(self.shown) for a in mine]
        self._latest: tuple[int, np.ndarray] | None = None

    @property
    def pictures(self) -> int:
        """Number of images with annotations."""
        return len(self.shown)

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`."""
        return f"{self.config.name}-{self.entries[i][1].get('id', i)}"

    def group(self, i: int) -> int:
        """The group of sample `i`: samples about one image have the same group."""
        return self.entries[i][0]

    def __getitem__(self, i: int) -> Sample:
        picture, annotation = self.entries[i]
        text = said(self.names[annotation["category_id"]], False)
        return self._sample(
            picture, annotation, text, validation_question(text, False), FORCED, self.id(i)
        )

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """Training samples about annotations of one image.

        A part is called `cup handle` or `the handle of the cup`, at random.
        """
        mine, samples = self.shown[picture][1], []
        for k in sample_indices(rng, count, len(mine)):
            text = said(self.names[mine[k]["category_id"]], bool(rng.integers(2)))
            name = f"{self.config.name}-{mine[k].get('id', k)}"
            samples.append(self._sample(picture, mine[k], text, *training_turn(rng, text), name))
        return samples

    def _sample(
        self, picture: int, annotation: dict, text: str, question: str, answer: str, name: str
    ) -> Sample:
        if self._latest is None or self._latest[0] != picture:
            self._latest = picture, read_image(self.folder / self.files[self.shown[picture][0]])
        image = self._latest[1]
        mask = coco_mask(
            annotation["segmentation"],
            image.shape[:2],
            f"{self.file}, annotation {annotation.get('id')}",
        )
        return Sample(
            Query(image, question),
            Answer(answer, mask[None], np.ones(1), [text], "found"),
            name,
            "",
        )


def spelled(name: str) -> tuple[str, ...]:
    """(object,) or (object, part) in words, from a category such as `mug_(cup):handle`."""
    return tuple(piece.split("_(")[0].replace("_", " ").strip() for piece in name.split(":"))


def said(names: tuple[str, ...], long: bool) -> str:
    """The words for an object, or for a part: `cup handle`, or long `the handle of the cup`."""
    if len(names) == 1:
        return names[0]
    return f"the {names[1]} of the {names[0]}" if long else f"{names[0]} {names[1]}"
