"""RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and RefCLEF, in the layout of the REFER API.

A *ref* is the REFER name for an object with the sentences that refer to it.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reasonseg.datasets.base import Name, Stream, sample_indices, training_turn, validation_question
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.markers import FORCED, REFUSED
from reasonseg.structures.polygons import coco_mask
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

PLACES = ("refer_seg", "")  # where the data sets are, below a root
PICTURES = ("images/mscoco/images/train2014", "images/train2014", "train2014")
CLEF = ("images/saiapr_tc-12",)  # RefCLEF's images
UNC = ("train", "val", "testA", "testB")
NAMES = {
    "refcoco": Name({"name": "refcoco"}, UNC),
    "refcoco+": Name({"name": "refcoco+"}, UNC),
    "refcocog": Name({"name": "refcocog"}),
    "grefcoco": Name({"name": "grefcoco"}, UNC),
    "refclef": Name({"name": "refclef"}, evaluated=False),
}


@dataclass(frozen=True)
class Config:
    """Settings: `root` is LISA's dataset folder, or the folder that holds the data sets.

    An empty `split_by` means `umd` for RefCOCOg, else `unc`.
    """

    root: str = ""
    name: Literal["refcoco", "refcoco+", "refcocog", "grefcoco", "refclef"] = "refcoco"
    split: str = "val"
    split_by: str = ""

    def build(self) -> Refer:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return Refer(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """None: the data set needs the user's files, so it has no example."""
        return None


class Refer:
    """One sample per sentence; images in ascending order of their id, sentences as in the file."""

    def __init__(self, config: Config):
        self.config = config
        folders = [Path(config.root) / place / config.name for place in PLACES]
        folder = next((f for f in folders if f.is_dir()), None)
        if folder is None:
            raise InputError(
                f"{config.root or '.'} has no {config.name}; expected {PLACES[0]}/{config.name}"
            )
        self.folder = folder
        by = config.split_by or ("umd" if config.name == "refcocog" else "unc")
        refs = read_refs(self.folder, by)
        chosen = [ref for ref in refs if belongs(str(ref.get("split", "")), config.split)]
        if not chosen:
            there = sorted({str(ref.get("split")) for ref in refs})
            raise InputError(
                f"{self.folder} has no split {config.split!r}; there are {', '.join(there)}"
            )
        # sort is stable: sentences stay in the order of the file
        chosen.sort(key=lambda ref: ref["image_id"])
        self._latest: tuple[int, np.ndarray] | None = None
        self.entries = [(ref, s) for ref in chosen for s in range(len(ref["sentences"]))]

    @cached_property
    def instances(self) -> tuple[dict[int, dict], dict[int, dict]]:
        """(images, annotations) of `instances.json`, each by id."""
        file = self.folder / "instances.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return {i["id"]: i for i in found["images"]}, {a["id"]: a for a in found["annotations"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is not a COCO file of images and annotations: {error!r}"
            ) from None

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`: the ids of its ref and its sentence."""
        ref, s = self.entries[i]
        return f"{self.config.name}-{ref['ref_id']}-{ref['sentences'][s].get('sent_id', s)}"

    def group(self, i: int) -> int:
        """The group of sample `i`: samples about one image have the same group."""
        return self.entries[i][0]["image_id"]

    @cached_property
    def shown(self) -> list[list[dict]]:
        """The refs of each image."""
        of: dict[int, list[dict]] = {}
        for ref, s in self.entries:
            if s == 0:
                of.setdefault(ref["image_id"], []).append(ref)
        return list(of.values())

    @property
    def pictures(self) -> int:
        """Number of images."""
        return len(self.shown)

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """Training samples about sentences of one image.

        Where nothing in the image matches a sentence (gRefCOCO), the answer is `<REJ>`.
        """
        there = [(ref, s) for ref in self.shown[picture] for s in range(len(ref["sentences"]))]
        chosen = [there[k] for k in sample_indices(rng, count, len(there))]
        return [self._sample(ref, s, rng) for ref, s in chosen]

    def __getitem__(self, i: int) -> Sample:
        return self._sample(*self.entries[i])

    def _sample(self, ref: dict, s: int, rng: np.random.Generator | None = None) -> Sample:
        """A sample with the question of validation, or with an `rng` with one of training."""
        image = self._image(ref)
        mask, wanted = self._mask(ref, image.shape[:2])
        text = ref["sentences"][s]["sent"].strip().lower()
        absent = wanted == [-1]
        masks = mask[None][: 0 if absent else 1]
        question, answer = validation_question(text, False), REFUSED if absent else FORCED
        if rng is not None:
            question, answer = training_turn(rng, text, marker="<REJ>" if absent else "<SEG>")
        truth = Answer(
            answer, masks, np.ones(len(masks)), [text] * len(masks), "absent" if absent else "found"
        )
        name = f"{self.config.name}-{ref['ref_id']}-{ref['sentences'][s].get('sent_id', s)}"
        return Sample(Query(image, question), truth, name, "")

    def _image(self, ref: dict) -> np.ndarray:
        images, number = self.instances[0], ref["image_id"]
        if number not in images:
            raise InputError(
                f"{self.folder / 'instances.json'}: no image {number}, which ref {ref['ref_id']} "
                "names"
            )
        # samples about one image share the same array object, so that it is encoded once
        if self._latest is None or self._latest[0] != number:
            self._latest = number, read_image(self._picture(images[number]["file_name"]))
        return self._latest[1]

    def _mask(self, ref: dict, size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
        mask, annotations = np.zeros(size, bool), self.instances[1]
        wanted = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        for number in wanted:
            if number == -1:  # gRefCOCO: nothing in the image matches
                continue
            if number not in annotations:
                raise InputError(
                    f"{self.folder / 'instances.json'}: no annotation {number}, which ref "
                    f"{ref['ref_id']} names"
                )
            mask |= coco_mask(
                annotations[number]["segmentation"], mask.shape, f"annotation {number}"
            )
        return mask, wanted

    def _picture(self, name: str) -> Path:
        bases = [
            self.folder.parent / place
            for place in (CLEF if self.config.name == "refclef" else PICTURES)
        ]
        bases += (
            [Path(self.config.root) / "coco" / "train2014"] if self.config.name != "refclef" else []
        )
        for base in bases:
            if (base / name).is_file():
                return base / name
        whose = (
            "RefCLEF's images are those of saiapr_tc-12"
            if self.config.name == "refclef"
            else "RefCOCO's images are those of COCO train2014"
        )
        raise InputError(f"{name} is not in {bases[0]}; {whose}")


def belongs(split: str, wanted: str) -> bool:
    """Whether a ref's split is the wanted one, by the rules of the REFER API.

    testA and testB are matched by their letter, `test` by the word, others exactly.
    """
    if wanted in ("testA", "testB"):
        return wanted[-1] in split
    return "test" in split if wanted == "test" else split == wanted


class Plain(pickle.Unpickler):
    """An unpickler for lists, dicts, strings and numbers only: it never imports code."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises `UnpicklingError` for every class that a file wants to import."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_refs(folder: Path, by: str) -> list[dict]:
    """The refs of a data set, from `refs(by).p` or `refs(by).json` (gRefCOCO: `grefs(by)`).

    Raises `InputError` where the file is missing, malformed, or holds more than plain data.
    """
    stems = [f"{lead}({by})" for lead in ("refs", "grefs")]
    file = next(
        (f for s in stems for f in (folder / f"{s}.p", folder / f"{s}.json") if f.is_file()), None
    )
    if file is None:
        raise InputError(f"{folder} has no {stems[0]}.p")
    try:
        if file.suffix == ".json":
            refs = json.loads(file.read_text(encoding="utf-8"))
        else:
            with file.open("rb") as opened:
                refs = Plain(opened, encoding="utf-8").load()
        for ref in refs:
            _ = ref["ref_id"], ref["image_id"], ref["ann_id"], [s["sent"] for s in ref["sentences"]]
        return list(refs)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than plain data: {error}; only lists, dicts, strings and numbers "
            "are read"
        ) from None
    except (
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        UnicodeDecodeError,
    ) as error:
        raise InputError(f"{file} is not a list of refs: {error!r}") from None
