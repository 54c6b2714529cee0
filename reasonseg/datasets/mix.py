"""Several data sets mixed in given shares; the order is a pure function of (seed, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from reasonseg.config.kinds import config_class
from reasonseg.config.schema import Kind, Room
from reasonseg.datasets.base import PER_PICTURE, Name
from reasonseg.errors import InputError
from reasonseg.structures.sample import Sample

NAMES: dict[str, Name] = {}  # for training only


@dataclass(frozen=True)
class Config:
    """Settings of the mix.

    `sets` are data sets by name; `weights` are their relative shares (1 where none is given).
    `root` is used for the sets whose own `root` is empty.
    """

    sets: dict[str, Annotated[Kind, Room("datasets")]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    root: str = ""

    def build(self) -> Mix:
        """All samples of all sets, one set after another."""
        return Mix(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples in the given shares."""
        return Stream(self, length, seed)

    @classmethod
    def example(cls) -> Config:
        """A small data set, for tests."""
        scenes = config_class("datasets", "scenes")
        small = {
            "things": scenes("val", count=3, size=96),
            "more": scenes("val", count=4, seed=5, size=96),
        }
        return cls({name: Kind("scenes", config) for name, config in small.items()}, {"more": 2.0})

    def parts(self) -> dict[str, Any]:
        """The settings of the sets by name, with their root.

        Raises `InputError` where there is no set, a weight names no set, or a share is not valid.
        """
        if not self.sets:
            raise InputError("sets: a mix needs one data set at least")
        if unknown := [name for name in self.weights if name not in self.sets]:
            raise InputError(f"weights: no set {unknown[0]!r}; there are {', '.join(self.sets)}")
        shares = [self.weights.get(name, 1.0) for name in self.sets]
        if not all(math.isfinite(s) and s >= 0 for s in shares) or not sum(shares):
            raise InputError(f"weights: shares are 0 or more and not all 0, got {shares}")
        parts = {name: kind.config for name, kind in self.sets.items()}
        return {
            n: replace(c, root=self.root) if self.root and getattr(c, "root", None) == "" else c
            for n, c in parts.items()
        }


class Mix:
    """Samples of all the sets by one index."""

    def __init__(self, config: Config):
        self.config = config
        self.sets = {name: part.build() for name, part in config.parts().items()}
        self.places = [(name, i) for name, data in self.sets.items() for i in range(len(data))]

    def __len__(self) -> int:
        return len(self.places)

    def id(self, i: int) -> str:
        """The name of sample `i`, with the name of its set in front."""
        name, k = self.places[i]
        data = self.sets[name]
        return f"{name}: {data.id(k)}"

    def __getitem__(self, i: int) -> Sample:
        name, k = self.places[i]
        return replace(self.sets[name][k], id=self.id(i))


class Stream:
    """`length` samples; each `PER_PICTURE` in a row, which share an image, come from one set."""

    def __init__(self, config: Config, length: int, seed: int):
        parts = config.parts()
        shares = np.array([config.weights.get(name, 1.0) for name in parts])
        self.names, self.shares = list(parts), shares / shares.sum()
        self.length, self.seed = length, seed
        used = [name for name, share in zip(self.names, self.shares, strict=True) if share > 0]
        self.streams = {name: parts[name].training(length, seed + k) for k, name in enumerate(used)}

    def __len__(self) -> int:
        return self.length

    def of(self, i: int) -> str:
        """The name of the set that sample `i` comes from."""
        return self.names[
            np.random.default_rng([self.seed, 7, i // PER_PICTURE]).choice(
                len(self.names), p=self.shares
            )
        ]

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        return self.streams[self.of(i)][i]
