"""Annotates many images on Ray Data: a pool of models works on shards of images.

A shard is written as a whole or not at all; `annotations.py` says what OUTPUT holds. A run that was
killed resumes with the missing shards; new images become further shards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError
from tqdm import tqdm

from reasonseg.checkpoints.delta import identity
from reasonseg.errors import InputError
from reasonseg.serving.annotations import (
    Row,
    claim,
    finish,
    listing,
    only_run,
    part,
    pictures_of,
    rows_of,
    stamp_of,
    to_do,
    write_part,
)
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import make_folder, read_image
from reasonseg.structures.query import Query

if TYPE_CHECKING:
    from reasonseg.serving.reference_bank import By


@dataclass(frozen=True)
class Task:
    """The questions about each image.

    These are `questions`, or the `shots` nearest references of the `bank` (a folder), or both. `by`
    is how the bank compares. `model` holds the keywords of `Segmenter.from_pretrained`, `source`
    included. `batch` is the number of images per batch. Raises `InputError` where there is neither
    a question nor a bank.
    """

    questions: tuple[str, ...] = ()
    bank: str = ""
    shots: int = 1
    by: By = "pixel"
    model: dict[str, Any] = field(default_factory=dict)
    batch: int = 16

    def __post_init__(self):
        if not self.questions and not self.bank:
            raise InputError("nothing is asked: give --ask, --queries or --bank")


def questions_in(file: str | Path) -> tuple[str, ...]:
    """The questions of a text file, one per line. Raises `InputError` where there is none."""
    if not Path(file).is_file():
        raise InputError(f"{file} does not exist")
    lines = tuple(
        line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()
    )
    if not lines:
        raise InputError(f"{file} holds no question; write one per line")
    return lines


class Annotator:
    """One model of the pool. Raises `InputError` where it cannot use the bank of the task."""

    def __init__(self, task: Task, out: str, threads: int):
        import torch

        from reasonseg import Segmenter
        from reasonseg.runtime import quiet_libraries
        from reasonseg.serving.reference_bank import Bank

        quiet_libraries()
        torch.set_num_threads(threads)
        model = dict(task.model)
        self.task, self.out = task, Path(out)
        self.segmenter = Segmenter.from_pretrained(model.pop("source", None), **model)
        self.bank = Bank(task.bank) if task.bank else None
        if self.bank is not None and self.segmenter.references is None:
            raise InputError(
                "this model was not trained with references; a bank needs one that was"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Annotates shards, each to its own file; returns the number of images done of each."""
        counts = [
            self.shard(int(number), list(paths), set(again))
            for number, paths, again in zip(
                batch["shard"], batch["images"], batch["again"], strict=True
            )
        ]
        return {"done": np.array(counts)}

    def shard(self, number: int, paths: list[str], again: set[str]) -> int:
        """Annotates the images `again` of a shard and writes its file; the other rows are kept."""
        file = part(self.out, number)
        kept = rows_of(file) if file.is_file() else {}
        todo = [path for path in paths if path in again or path not in kept]
        stamps = {path: stamp_of(path) for path in todo}
        sizes: dict[str, tuple[int, int]] = {}
        for path, row in zip(todo, self.rows(todo, sizes), strict=True):
            kept[path] = Row(row, sizes.get(path, (0, 0)), stamps[path])
        write_part(file, [kept[path] for path in paths])
        return len(todo)

    def rows(self, paths: list[str], sizes: dict[str, tuple[int, int]]) -> Iterator[dict]:
        """One row per image, in order; an image that cannot be read is a row with its error.

        Adds the (height, width) of each image that can be read to `sizes`.
        """
        for start in range(0, len(paths), self.task.batch):
            part, queries, errors = paths[start : start + self.task.batch], {}, {}
            for path in part:
                try:
                    image = read_image(path)
                except (InputError, OSError) as error:
                    errors[path] = " ".join(str(error).split())
                    continue
                sizes[path] = image.shape[0], image.shape[1]
                queries[path] = self.queries(image)
            asked = [query for several in queries.values() for query in several]
            answers = iter(self.segmenter.batch(asked))
            for path in part:
                if path in errors:
                    yield {
                        "image": path,
                        "status": "error",
                        "text": "",
                        "objects": [],
                        "error": errors[path],
                    }
                else:
                    yield row_of(path, queries[path], [next(answers) for _ in queries[path]])

    def queries(self, image: np.ndarray) -> list[Query]:
        """The queries about one image, uint8 `[h, w, 3]`: one per question."""
        shown = (
            self.bank.select(self.segmenter, image, self.task.shots, by=self.task.by)
            if self.bank
            else []
        )
        references = [choice.reference for choice in shown]
        return [Query(image, text, references) for text in self.task.questions or ("",)]


def row_of(path: str, queries: Sequence[Query], answers: Sequence[Answer]) -> dict:
    """The row of one image: every object with the question that it answers."""
    objects = [
        {**o, "question": q.text}
        for q, a in zip(queries, answers, strict=True)
        for o in a.to_dict()["objects"]
    ]
    said = [a.status for a in answers]
    status = "found" if "found" in said else said[0]
    return {
        "image": path,
        "status": status,
        "text": "\n".join(a.text for a in answers),
        "objects": objects,
        "error": None,
    }


def annotate(
    source: str | Path,
    out: str | Path,
    task: Task,
    *,
    address: str | None = None,
    models: int | None = None,
    shard: int = 64,
    progress: bool = True,
) -> dict[str, int]:
    """Annotates every image of `source` once and returns the number of images by status.

    A run that was killed resumes where it stopped. Images that changed since, and images that could
    not be read, are done again. `address` is the address of a Ray cluster (None: this machine);
    `models` is the number of models that work in parallel (None: one per GPU, or without a GPU one
    per two cores); `shard` is the number of images per shard. Raises `InputError` where `out` holds
    a run with other settings or weights, or where another run writes to it.
    """
    out = make_folder(Path(out).absolute())
    with only_run(out):
        for left in out.glob(".part-*"):  # temporary files of a killed run
            left.unlink(missing_ok=True)
        weights = identity({"source": None, **task.model})
        claim(out, json.loads(json.dumps({**asdict(task), "weights": weights})))
        shards = listing(out, pictures_of(source), shard)
        todo = [
            {"shard": k, "images": paths, "again": again}
            for k, paths in enumerate(shards)
            if (again := to_do(out, k, paths))
        ]
        _run(todo, sum(map(len, shards)), task, out, address, models, progress)
        return finish(out, len(shards))


def _run(
    todo: list[dict],
    total: int,
    task: Task,
    out: Path,
    address: str | None,
    models: int | None,
    progress: bool,
) -> None:
    """Annotates shards on the pool, with a progress bar over all `total` images."""
    with tqdm(
        total=total,
        initial=total - sum(len(t["again"]) for t in todo),
        desc="annotate",
        unit="image",
        disable=not progress,
    ) as bar:
        for done in _worked(todo, task, out, address, models):
            bar.update(done)


def _worked(
    todo: list[dict], task: Task, out: Path, address: str | None, models: int | None
) -> Iterator[int]:
    """Annotates shards on the pool; yields the number of images of each finished shard."""
    if not todo:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        pool = min(models or gpus or max(cpus // 2, 1), len(todo))
        data = ray.data.from_items(todo, override_num_blocks=len(todo))
        data = data.map_batches(
            Annotator,
            fn_constructor_args=(task, str(out), max(cpus // pool, 1)),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=pool),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        batches: Iterable[Any] = data.iter_batches(
            batch_size=1, batch_format="numpy", prefetch_batches=0
        )
        for batch in batches:
            yield int(batch["done"].sum())
    except RayError as error:
        raise mistake_in(error) from None
    finally:
        if started:
            ray.shutdown()


def mistake_in(error: BaseException | None) -> BaseException:
    """The `InputError` behind a failure on the pool; the failure itself where there is none."""
    told = " ".join(str(error).split())
    inside = error
    while inside is not None:
        if isinstance(inside, InputError):
            return InputError(str(inside).strip().splitlines()[-1])
        inside = getattr(inside, "cause", None) or inside.__cause__
    mark = "reasonseg.errors.InputError: "
    if mark in told or error is None:
        return InputError(told.rsplit(mark, 1)[-1])
    return error
