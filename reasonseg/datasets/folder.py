"""Your own folder of images and masks, in any of the layouts of `layouts/`.

There is one sample for each label of an image (all its shapes together), or for each text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.base import Name
from reasonseg.datasets.layouts import (
    coco,
    jsonl,
    label_studio,
    labelme,
    named_masks,
    pairs,
    tables,
    voc,
    yolo,
)
from reasonseg.datasets.layouts.base import Entry, Remark, Scan
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.duplicates import copies
from reasonseg.structures.images import read_image
from reasonseg.structures.mask_values import named_values
from reasonseg.structures.placing import Frame
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

VALIDATION = "validation"
SPLITS = ("all", "train", VALIDATION, "val", "test")
# the first layout that finds entries is used
LAYOUTS = (jsonl, coco, voc, pairs, yolo, labelme, label_studio, named_masks, tables)
NAMES = {"folder": Name(splits=("all",))}
LISTED = 5  # remarks that an error lists


@dataclass(frozen=True)
class Config:
    """Settings of the folder.

    `split` is `all`, `train`, `validation` or `test`. Where the folder has splits of its own, such
    as `train/` and `valid/`, they are used; else the fraction `share` (0..1) of the images is kept
    for validation. All samples of an image are in the same split. `absent` is the probability, in
    training, of a question about a label of other images, whose true answer is that it is absent.

    What the values of masks mean is found out (`structures/mask_values.py`), or said: `classes`
    names them (`{1: cup, 2: plate}`, or a list whose first name is that of 0), and `void` is one
    value or a list of those that are not counted. `encoding` is that of text files.
    """

    root: str = ""
    split: str = "all"
    share: float = 0.1
    absent: float = 0.0
    seed: int = 0
    skipped: tuple[str, ...] = ()  # ids of samples that are left out
    void: Any = None
    classes: Any = None
    encoding: str | None = None

    def build(self) -> Folder:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return Folder(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples in an order that is a pure function of the seed."""
        return Stream(self.build(), length, seed, self.absent)

    @classmethod
    def example(cls) -> Config | None:
        """None: the data set needs the user's files, so it has no example."""
        return None


class Folder:
    """Samples by index. `labels` are all labels of the folder, sorted."""

    def __init__(self, config: Config):
        self.config = config
        if config.split not in SPLITS:
            raise InputError(
                f"no split {config.split!r} of a folder; there are {', '.join(SPLITS)}"
            )
        self.scan = scan_of(config)
        entries = next((found for layout in LAYOUTS if (found := layout.entries(self.scan))), [])
        if not entries:
            noticed = "; ".join(r.text for r in list(self.scan.remarks)[:LISTED])
            raise InputError(
                f"{config.root} holds no annotated images; expected a COCO .json, LabelMe or Label "
                "Studio files, images/ with masks/ or labels/, PASCAL VOC, samples.jsonl, or a "
                f"table with columns image and mask{'. ' if noticed else ''}{noticed}"
            )
        entries = self._numbered(entries)
        self.labels = sorted({label for e in entries for label in e.labels})
        # the labels of each image, including images that cannot be read
        self.present: dict[Path, set[str]] = {}
        for entry in entries:
            self.present.setdefault(entry.picture, set()).update(
                () if entry.absent else entry.labels
            )
        entries = [e for e in entries if self.name(e) not in config.skipped]
        self.entries = self._chosen(entries)
        self._latest: tuple[Path, np.ndarray, Frame] | None = None

    @property
    def remarks(self) -> list[Remark]:
        """What was noticed so far: some of it only when samples are read."""
        return list(self.scan.remarks)

    def _chosen(self, entries: list[Entry]) -> list[Entry]:
        """The entries of the split: those of the folder's own splits, or of a random one."""
        split = VALIDATION if self.config.split == "val" else self.config.split
        own = {e.split for e in entries} - {""}
        if split == "all":
            return entries
        if split == "test" or VALIDATION in own:
            if split not in own and (split != "train" or "" not in {e.split for e in entries}):
                raise InputError(
                    f"{self.config.root} has no images of the split {split}; it has "
                    f"{', '.join(sorted(own)) or 'no splits of its own'}"
                )
            return [e for e in entries if (e.split or "train") == split]
        entries = [e for e in entries if e.split != "test"]
        kept = self._kept(entries)
        return [e for e in entries if (e.picture in kept) == (split == VALIDATION)]

    def _kept(self, entries: list[Entry]) -> set[Path]:
        """The images that are kept for validation; copies of an image stay on its side."""
        sources = {e.picture: e.data if e.data is not None else e.picture for e in entries}
        pictures = sorted(sources)
        first = copies([sources[picture] for picture in pictures])
        groups = sorted(set(first))
        if len(groups) < len(pictures):
            self.scan.say(
                f"{len(pictures) - len(groups)} of {len(pictures)} images are copies of others, or "
                "nearly so; copies are all trained on or all kept for validation"
            )
        order = np.random.default_rng(self.config.seed).permutation(len(groups))
        count = max(round(self.config.share * len(groups)), 1) if len(groups) > 1 else 0
        kept = {groups[i] for i in order[:count]}
        return {picture for picture, k in zip(pictures, first, strict=True) if k in kept}

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`: its image and its text."""
        return self.name(self.entries[i])

    def name(self, entry: Entry) -> str:
        """The name of a sample: its image and its text."""
        inside = entry.picture.is_relative_to(self.config.root)
        place = entry.picture.relative_to(self.config.root) if inside else entry.picture
        again = f" ({entry.number})" if entry.number > 1 else ""
        return f"{place.as_posix()}: {entry.text}{again}"

    def _numbered(self, entries: list[Entry]) -> list[Entry]:
        """The entries, with numbers where several have the same image and text."""
        counts: Counter[str] = Counter()
        numbered = []
        for entry in entries:
            name = self.name(entry)
            counts[name] += 1
            numbered.append(replace(entry, number=counts[name]) if counts[name] > 1 else entry)
        return numbered

    def result_keys(self) -> dict[tuple[str, str], str]:
        """The ids of samples by the (image, category) ids of COCO results; empty without them."""
        return {key: self.name(entry) for entry in self.entries for key in entry.results}

    def group(self, i: int) -> str:
        """The group of sample `i`: samples about one image have the same group."""
        return str(self.entries[i].picture)

    def image(self, i: int) -> np.ndarray:
        """The image of sample `i`; consecutive samples about one image share the array object."""
        return self._image(i)[0]

    def _image(self, i: int) -> tuple[np.ndarray, Frame]:
        entry = self.entries[i]
        if entry.problem:
            raise InputError(entry.problem)
        if self._latest is None or self._latest[0] != entry.picture:
            source = entry.picture if entry.data is None else entry.data
            name = str(entry.picture)
            image = read_image(source, name=name, remark=self.scan.say)
            self._latest = entry.picture, image, Frame.of(source, name)
        return self._latest[1:]

    def __getitem__(self, i: int) -> Sample:
        entry, (image, frame) = self.entries[i], self._image(i)
        masks = entry.masks(frame)
        for mask in masks:
            if not mask.any():
                raise InputError(f"{entry.picture}: the mask of {entry.text!r} is empty")
        if entry.answer and entry.answer.count("<SEG>") != len(masks):
            raise InputError(
                f"{entry.picture}: the answer to {entry.text!r} has "
                f"{entry.answer.count('<SEG>')} times <SEG> but {len(masks)} masks"
            )
        labels = (
            list(entry.labels) if len(entry.labels) == len(masks) else [entry.text] * len(masks)
        )
        if entry.absent:
            blank = np.zeros((0, *frame.size), bool)
            answer = entry.answer or f"{entry.text} <REJ>."
            return Sample(
                Query(image, entry.text),
                Answer(answer, blank, np.zeros(0), [], "absent"),
                self.id(i),
                "absent",
            )
        truth = Answer(
            entry.answer or said(labels), np.array(masks), np.ones(len(masks)), labels, "found"
        )
        ignored = entry.ignored(frame) if entry.ignored else None
        return Sample(Query(image, entry.text), truth, self.id(i), "", ignored)

    def refused(self, i: int, rng: np.random.Generator) -> Sample | None:
        """A sample that asks for a label which the image of sample `i` does not have.

        None where the image has all labels.
        """
        others = [
            label for label in self.labels if label not in self.present[self.entries[i].picture]
        ]
        if not others:
            return None
        label, image = others[rng.integers(len(others))], self.image(i)
        truth = Answer(
            f"The {label} <REJ>.", np.zeros((0, *image.shape[:2]), bool), np.zeros(0), [], "absent"
        )
        return Sample(
            Query(image, f"the {label}"), truth, f"{self.id(i)} (absent: {label})", "absent"
        )


class Stream:
    """`length` training samples: each epoch has its own order.

    With probability `absent` a sample is replaced by a question about an absent label. Sample i is
    a pure function of (seed, i). Raises `InputError` where there is no sample.
    """

    def __init__(self, samples: Folder, length: int, seed: int, absent: float):
        self.samples, self.length, self.seed, self.absent = samples, length, seed, absent
        if not len(samples):
            raise InputError(f"{samples.config.root} leaves no sample to train on")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        epoch, place = divmod(i, len(self.samples))
        chosen = int(
            np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))[place]
        )
        rng = np.random.default_rng([self.seed, 1, i])
        if rng.random() < self.absent and (sample := self.samples.refused(chosen, rng)):
            return sample
        return self.samples[chosen]


def scan_of(config: Config) -> Scan:
    """The reading of the folder of a config. Raises `InputError` where there is no such folder."""
    if not config.root:
        raise InputError("no folder is named; give one with --root DIR")
    root = Path(config.root)
    if not root.is_dir():
        raise InputError(f"{root} is no folder")
    void = config.void if isinstance(config.void, list | tuple) else [config.void]
    if config.void is not None and not all(type(v) is int and v >= 0 for v in void):
        raise InputError(f"data.void: {config.void!r} is no value of a mask, or list of values")
    classes = None if config.classes is None else named_values(config.classes, "data.classes")
    return Scan(root, None if config.void is None else tuple(void), classes, config.encoding)


def said(labels: list[str]) -> str:
    """The true answer: each label followed by `<SEG>`."""
    return (
        ", ".join(f"{'the' if i else 'The'} {label} <SEG>" for i, label in enumerate(labels)) + "."
    )


def check(samples: Folder) -> list[tuple[str, str]]:
    """(id, error) of each sample that cannot be used. Reads all samples."""
    problems = []
    for i in range(len(samples)):
        try:
            _ = samples[i]
        except InputError as error:
            problems.append((samples.id(i), str(error)))
    return problems
