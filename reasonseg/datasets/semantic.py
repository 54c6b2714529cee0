"""ADE20K, COCO-Stuff and Mapillary Vistas: semantic segmentation; a question asks for one class.

Each image has a label map, a PNG whose pixel value is the class.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from reasonseg.datasets.base import Name, Stream, sample_indices, training_turn, validation_question
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image, read_values
from reasonseg.structures.markers import FORCED
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

UNLABELLED = 255
LAYOUTS = {  # (label maps, images) below LISA's dataset folder
    "ade20k": ("ade20k/annotations/training", "ade20k/images/training"),
    "cocostuff": ("cocostuff/train2017", "coco/train2017"),
    "mapillary": ("mapillary/training/v2.0/labels", "mapillary/training/images"),
}
NAMES = {name: Name({"name": name}, ("train",), evaluated=False) for name in LAYOUTS}


@dataclass(frozen=True)
class Config:
    """Settings: `root` is LISA's dataset folder, `name` the data set in it.

    Classes of COCO-Stuff with a hyphen (`wall-brick`) are left out, as in LISA.
    """

    root: str = ""
    name: Literal["ade20k", "cocostuff", "mapillary"] = "ade20k"

    def build(self) -> Semantic:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return Semantic(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """None: the data set needs the user's files, so it has no example."""
        return None


class Semantic:
    """One sample per image, about its largest class; training asks for any class."""

    def __init__(self, config: Config):
        self.config = config
        maps, pictures = (Path(config.root) / place for place in LAYOUTS[config.name])
        self.maps = sorted(maps.glob("*.png"))
        self.folder = pictures
        if not self.maps:
            raise InputError(
                f"{config.root or '.'} has no {config.name}; expected label maps (.png) in {maps}"
            )

    @property
    def pictures(self) -> int:
        """Number of images."""
        return len(self.maps)

    @cached_property
    def names(self) -> dict[int, str]:
        """Class names by pixel value. Raises `InputError` where Mapillary's list cannot be read."""
        if self.config.name == "mapillary":
            file = Path(self.config.root) / "mapillary" / "config_v2.0.json"
            try:
                labels = json.loads(file.read_text(encoding="utf-8"))["labels"]
                return {k: str(label["readable"]).lower() for k, label in enumerate(labels)}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} does not list Mapillary's labels: {error!r}") from None
        known = yaml.safe_load(
            (files("reasonseg.assets") / "classes.yaml").read_text(encoding="utf-8")
        )[self.config.name]
        first = 1 if self.config.name == "ade20k" else 0
        return {k: name for k, name in enumerate(known, first) if "-" not in name}

    def __len__(self) -> int:
        return len(self.maps)

    def id(self, i: int) -> str:
        """The name of sample `i`."""
        return f"{self.config.name}/{self.maps[i].stem}"

    def group(self, i: int) -> str:
        """The group of sample `i`: samples about one image have the same group."""
        return str(self.maps[i])

    def __getitem__(self, i: int) -> Sample:
        image, values, present = self.read(i)
        if not present:
            raise InputError(f"{self.maps[i]}: no class that has a name covers a pixel")
        largest = max(present, key=lambda k: int((values == k).sum()))
        return self._sample(
            i, image, values, largest, validation_question(self.names[largest], False), FORCED
        )

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """Training samples about classes of one image; empty where it has no named class."""
        image, values, present = self.read(picture)
        chosen = [present[k] for k in sample_indices(rng, count, len(present))] if present else []
        return [
            self._sample(picture, image, values, k, *training_turn(rng, self.names[k]))
            for k in chosen
        ]

    def _sample(
        self, i: int, image: np.ndarray, values: np.ndarray, value: int, question: str, answer: str
    ) -> Sample:
        name = self.names[value]
        truth = Answer(answer, (values == value)[None], np.ones(1), [name], "found")
        return Sample(Query(image, question), truth, f"{self.id(i)}/{name}", "")

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """(image, label map `[h, w]`, pixel values of its named classes) of image `i`.

        Raises `InputError` where a file is missing, unreadable or of another size.
        """
        file = self.maps[i]
        picture = next(
            (p for p in (self.folder / f"{file.stem}{s}" for s in (".jpg", ".png")) if p.is_file()),
            None,
        )
        if picture is None:
            raise InputError(f"{file}: there is no image {self.folder / file.stem}.jpg")
        image = read_image(picture)
        try:
            values = read_values(file)
        except InputError as error:
            raise InputError(f"{file} is not a label map: {error}") from None
        if values.ndim != 2 or values.shape != image.shape[:2]:
            raise InputError(
                f"{file} is {list(values.shape)}, its picture {list(image.shape[:2])}; a map has "
                "one channel"
            )
        return image, values, [k for k in np.unique(values).tolist() if k in self.names]
