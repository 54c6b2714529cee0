"""ADE20K, COCO-Stuff and Mapillary Vistas: a map of classes beside every picture; a question
asks for one class.
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
from PIL import Image

from reasonseg.datasets.base import Name, Stream, sample_indices, training_turn, validation_question
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.markers import FORCED
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

UNLABELLED = 255
LAYOUTS = {  # maps, pictures, below LISA's dataset folder
    "ade20k": ("ade20k/annotations/training", "ade20k/images/training"),
    "cocostuff": ("cocostuff/train2017", "coco/train2017"),
    "mapillary": ("mapillary/training/v2.0/labels", "mapillary/training/images"),
}
NAMES = {name: Name({"name": name}, ("train",), evaluated=False) for name in LAYOUTS}


@dataclass(frozen=True)
class Config:
    """`root` is LISA's dataset folder. COCO-Stuff's classes with a hyphen (`wall-brick`) are
    left out, as LISA does.
    """

    root: str = ""
    name: Literal["ade20k", "cocostuff", "mapillary"] = "ade20k"

    def build(self) -> Semantic:
        """The data set."""
        return Semantic(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """It has none of its own: the files are the user's."""
        return None


class Semantic:
    """One sample a picture, for its largest class; training asks for any."""

    def __init__(self, config: Config):
        self.config = config
        maps, pictures = (Path(config.root) / place for place in LAYOUTS[config.name])
        self.maps = sorted(maps.glob("*.png"))
        self.folder = pictures
        if not self.maps:
            raise InputError(
                f"{config.root or '.'} has no {config.name}; expected maps (.png) in {maps}"
            )

    @property
    def pictures(self) -> int:
        """How many."""
        return len(self.maps)

    @cached_property
    def names(self) -> dict[int, str]:
        """Class names by pixel value."""
        if self.config.name == "mapillary":
            file = Path(self.config.root) / "mapillary" / "config_v2.0.json"
            try:
                labels = json.loads(file.read_text(encoding="utf-8"))["labels"]
                return {k: str(label["readable"]).lower() for k, label in enumerate(labels)}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} does not list Mapillary's labels: {error!r}") from None
        known = yaml.safe_load((files("reasonseg.assets") / "classes.yaml").read_text())[
            self.config.name
        ]
        first = 1 if self.config.name == "ade20k" else 0
        return {k: name for k, name in enumerate(known, first) if "-" not in name}

    def __len__(self) -> int:
        return len(self.maps)

    def id(self, i: int) -> str:
        """The name of sample `i`."""
        return f"{self.config.name}/{self.maps[i].stem}"

    def group(self, i: int) -> str:
        """Samples on one picture have the same group."""
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
        """Questions for classes of a picture."""
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
        """(picture, map `[h, w]`, the values of named classes in it)."""
        file = self.maps[i]
        picture = next(
            (p for p in (self.folder / f"{file.stem}{s}" for s in (".jpg", ".png")) if p.is_file()),
            None,
        )
        if picture is None:
            raise InputError(f"{file}: there is no picture {self.folder / file.stem}.jpg")
        image = read_image(picture)
        try:
            with Image.open(file) as opened:
                values = np.asarray(opened)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{file} is not a map of classes: {error}") from None
        if values.ndim != 2 or values.shape != image.shape[:2]:
            raise InputError(
                f"{file} is {list(values.shape)}, its picture {list(image.shape[:2])}; a map has "
                "one channel"
            )
        return image, values, [k for k in np.unique(values).tolist() if k in self.names]
