"""ReasonSeg: one folder per split, X.jpg beside X.json (texts, is_sentence, LabelMe shapes)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from reasonseg.datasets.base import (
    EXPLAIN,
    Name,
    Stream,
    sample_indices,
    training_turn,
    validation_question,
)
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.markers import FORCED
from reasonseg.structures.polygons import IGNORED, THING, paint
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

PLACES = ("reason_seg/ReasonSeg", "ReasonSeg", "")  # where the splits are, below a root
PICTURES = (".jpg", ".jpeg", ".png")
NAMES = {"reasonseg": Name()}


@dataclass(frozen=True)
class Config:
    """Settings of ReasonSeg.

    `root` is LISA's dataset folder, or the folder that holds the splits. Several splits are joined
    with `_`. `sentences`: `first` text of each image, as LISA validates, or `all` texts.
    `explained` (training): for images with an explanation (`explanatory/train.json`), the
    probability of an answer in words only; of the other answers half add the explanation.
    """

    root: str = ""
    split: str = "val"
    sentences: Literal["first", "all"] = "first"
    explained: float = 0.1

    def build(self) -> ReasonSeg:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return ReasonSeg(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` training samples, a pure function of the seed."""
        return Stream(self.build(), length, seed)

    @classmethod
    def example(cls) -> Config | None:
        """None: the data set needs the user's files, so it has no example."""
        return None


class ReasonSeg:
    """Samples by index.

    `level` is `long` for sentences and `short` for phrases; `ignored` marks the pixels that no
    score counts.
    """

    def __init__(self, config: Config):
        self.config = config
        base = next(
            (b for b in (Path(config.root) / p for p in PLACES) if _splits(b, config.split)), None
        )
        if base is None:
            raise InputError(
                f"{config.root or '.'} has no ReasonSeg split {config.split!r}; expected "
                f"{PLACES[0]}/{config.split}"
            )
        files = [
            f for split in config.split.split("_") for f in sorted((base / split).glob("*.json"))
        ]
        self.explanations = read_explanations(base / "explanatory" / "train.json")
        self.entries: list[tuple[Path, int]] = []  # (json file, number of its text)
        for file in files:
            try:
                count = len(read_annotation(file)["text"])
            except InputError:
                count = 1  # the error is raised when the sample is read
            self.entries += [
                (file, t) for t in range(count if config.sentences == "all" else min(count, 1))
            ]
        # the files with at least one text
        self.files = list(dict.fromkeys(file for file, _ in self.entries))
        self._latest: tuple[Path, tuple] | None = None
        if not self.entries:
            raise InputError(f"{base / config.split} holds no annotated image")

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`: its file, and the index of its text where that is not 0."""
        file, text = self.entries[i]
        return f"{file.parent.name}/{file.stem}" + (f"#{text}" if text else "")

    def group(self, i: int) -> str:
        """The group of sample `i`: samples about one image have the same group."""
        return str(self.entries[i][0])

    @property
    def pictures(self) -> int:
        """Number of images with at least one text."""
        return len(self.files)

    def training_samples(self, picture: int, count: int, rng: np.random.Generator) -> list[Sample]:
        """Training samples about one image, with any of its texts.

        Ignored pixels count as background, as in LISA's training.
        """
        file = self.files[picture]
        image, values, texts, is_sentence = read_pair(file)
        explanation = self.explanations.get(file.with_suffix(".jpg").name)
        samples = []
        for k in sample_indices(rng, count, len(texts)):
            text = texts[k].strip()
            question, said = training_turn(rng, text, is_sentence)
            truth = Answer(said, (values == THING)[None], np.ones(1), [text], "found")
            if explanation and rng.random() < self.config.explained:
                question, truth = (
                    text,
                    Answer(explanation, truth.masks[:0], np.zeros(0), [], "no_seg"),
                )
            elif explanation and rng.integers(2):
                question = f"{text} {EXPLAIN[rng.integers(len(EXPLAIN))]}"
                truth = replace(truth, text=f"{said} {explanation}")
            name = f"{file.parent.name}/{file.stem}#{k}"
            samples.append(
                Sample(Query(image, question), truth, name, "long" if is_sentence else "short")
            )
        return samples

    def __getitem__(self, i: int) -> Sample:
        file, number = self.entries[i]
        # samples about one image share the same array object, so that it is encoded once
        if self._latest is None or self._latest[0] != file:
            self._latest = file, read_pair(file)
        image, values, texts, is_sentence = self._latest[1]
        text = texts[number].strip()
        truth = Answer(FORCED, (values == THING)[None], np.ones(1), [text], "found")
        query = Query(image, validation_question(text, is_sentence))
        return Sample(
            query, truth, self.id(i), "long" if is_sentence else "short", values == IGNORED
        )


def _splits(base: Path, split: str) -> bool:
    return all((base / part).is_dir() for part in split.split("_"))


def read_explanations(file: Path) -> dict[str, str]:
    """Explanations by the file name of their image; empty where there is no such file.

    Raises `InputError` where the file is malformed.
    """
    if not file.is_file():
        return {}
    try:
        return {
            Path(e["image"]).name: str(e["outputs"]).strip()
            for e in json.loads(file.read_text(encoding="utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a list of explanations (image, outputs): {error!r}"
        ) from None


def read_annotation(file: Path) -> dict:
    """The annotation of an image, as in its JSON file.

    The file is read as UTF-8, or as Windows-1252 where that fails. Raises `InputError` naming the
    file and what is missing.
    """
    data = file.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from None
    texts = found.get("text") if isinstance(found, dict) else None
    if isinstance(texts, str):
        found["text"] = [texts]
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("text"), list)
        or not isinstance(found.get("shapes"), list)
    ):
        raise InputError(f"{file}: expected text (a list of words) and shapes (a list of polygons)")
    return found


def read_pair(file: Path) -> tuple[np.ndarray, np.ndarray, list[str], bool]:
    """(image, values, texts, is_sentence) of an annotation file and the image beside it.

    `values` is uint8 `[h, w]`: 1 object, 255 ignored, 0 rest.
    """
    annotation = read_annotation(file)
    picture = next((p for p in (file.with_suffix(s) for s in PICTURES) if p.is_file()), None)
    if picture is None:
        raise InputError(f"{file}: there is no picture {file.stem}.jpg beside it")
    image = read_image(picture)
    values = paint(annotation["shapes"], image.shape[:2], str(file))
    return image, values, [str(t) for t in annotation["text"]], bool(annotation.get("is_sentence"))
