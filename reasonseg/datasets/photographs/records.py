"""Photographs with label maps: one folder a set, with `index.json`, `images/` and `masks/`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from reasonseg.datasets.photographs.knowledge import things
from reasonseg.errors import InputError
from reasonseg.structures.images import read_image, read_values

VOID = 255  # of a COCO label map: a crowd
# sets in which every thing of these names is annotated
COCO = tuple(list(things())[: list(things()).index("hair")])
NEVER = (
    "zebra",
    "giraffe",
    "elephant",
    "bear",
    "toilet",
    "refrigerator",
    "oven",
    "microwave",
    "toaster",
    "pizza",
    "hot dog",
    "donut",
    "broccoli",
    "parking meter",
    "airplane",
)
RENAMED = {  # stuff of COCO panoptic, by what people call it
    "sky-other-merged": "sky",
    "grass-merged": "grass",
    "tree-merged": "tree",
    "road": "road",
    "sea": "sea",
    "sand": "sand",
    "snow": "snow",
    "window-other": "window",
    "curtain": "curtain",
    "building-other-merged": "building",
    "house": "building",
    "pillow": "pillow",
    "mountain-merged": "mountain",
    "river": "river",
    "floor-wood": "floor",
    "floor-other-merged": "floor",
    "wall-other-merged": "wall",
    "wall-brick": "wall",
    "wall-tile": "wall",
    "wall-wood": "wall",
    "wall-stone": "wall",
}
CLIPS = {  # what the clips of DAVIS show, where all of its kind is marked
    "blackswan": "bird",
    "camel": "camel",
    "cows": "cow",
    "dog": "dog",
    "goat": "goat",
    "libby": "dog",
}


@dataclass(frozen=True)
class Object:
    """One annotated thing: `name` (empty: not known), `mask` bool `[h, w]`; `stuff`: a region such
    as the sky, of which there is one.
    """

    name: str
    mask: np.ndarray
    stuff: bool = False


@dataclass(frozen=True)
class Record:
    """One photograph, read when it is asked for. `known` are the names of which it has nothing
    that is not annotated.
    """

    folder: Path
    set: str
    entry: dict
    categories: dict[str, str]
    stuff: dict[str, str]
    known: frozenset[str]

    @property
    def id(self) -> str:
        """A name that is unique among all sets."""
        return f"{self.set}/{self.entry['name']}"

    @property
    def names(self) -> frozenset[str]:
        """The names of what is annotated, without stuff."""
        return frozenset(label["name"] for label in self.entry["labels"].values())

    def image(self) -> np.ndarray:
        """The photograph, uint8 `[h, w, 3]`."""
        return read_image(self.folder / self.entry["image"])

    def objects(self) -> tuple[list[Object], np.ndarray]:
        """What is annotated, and the pixels that no score counts, bool `[h, w]`."""
        labels = _labels(self.folder / self.entry["mask"])
        if self.set == "davis":
            return [Object(CLIPS.get(self.entry["sequence"], ""), labels == 1)], labels < 0
        if "instances_png" not in self.entry:
            return self._by_label(labels), labels < 0
        instances = _labels(self.folder / self.entry["instances_png"])
        found = [
            Object(i["category"], instances == i["id"]) for i in self.entry.get("instances", ())
        ]
        return [*found, *self._regions()], labels == VOID

    def _by_label(self, labels: np.ndarray) -> list[Object]:
        found = [
            Object(said["name"], labels == int(number))
            for number, said in self.entry["labels"].items()
        ]
        if self.set == "clothing":
            beside = ("bag", "purse", "wallet")
            worn = [o.mask for o in found if o.name not in beside]
            found.append(Object("person", np.logical_or.reduce(worn)))
        return found

    def _regions(self) -> Iterator[Object]:
        if "panoptic" not in self.entry:
            return
        labels = _labels(self.folder / self.entry["panoptic"])
        named: dict[str, np.ndarray] = {}
        for number in np.unique(labels):
            if name := RENAMED.get(self.stuff.get(str(number), "")):
                named[name] = named.get(name, np.zeros(labels.shape, bool)) | (labels == number)
        for name, mask in named.items():
            if mask.mean() > 0.02:
                yield Object(name, mask, stuff=True)


def _labels(file: Path) -> np.ndarray:
    """A label map, int32 `[h, w]`; of colours, the identity that COCO's panoptic files hold."""
    values = read_values(file).astype(np.int32)
    return values if values.ndim == 2 else values[..., :3] @ np.array([1, 256, 65536])


SETS = {
    "coco-mini": "coco",
    "coco-extra": "coco",
    "ccp-clothing": "clothing",
    "davis2016-val": "davis",
    "fruits-nuts": "things",
    "fss1000-examples": "things",
}


@cache
def records(root: str, split: str) -> tuple[Record, ...]:
    """The photographs of a split (`train` or `val`) in all sets under a folder.

    Raises `InputError` where there are none.
    """
    if not root:
        raise InputError("data.root is empty; name the folder that holds the sets of photographs")
    found: list[Record] = []
    for folder in sorted(Path(root).glob("*/index.json")):
        content = json.loads(folder.read_text(encoding="utf-8"))
        kind = SETS.get(folder.parent.name, "things")
        stuff = content.get("panoptic_categories", {})
        clothes = frozenset(content["categories"].values())
        known = {"coco": frozenset(COCO), "clothing": clothes | set(NEVER)}
        for entry in content["images"]:
            if (entry["split"] == "val") == (split == "val"):
                safe = known.get(kind, frozenset(NEVER))
                found.append(Record(folder.parent, kind, entry, content["categories"], stuff, safe))
    if not found:
        raise InputError(
            f"data.root {root}: no photographs of split {split}; it should hold folders with "
            "index.json, images/ and masks/"
        )
    return tuple(found)
