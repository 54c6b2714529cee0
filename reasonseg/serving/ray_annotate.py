"""Annotates many images on Ray Data: a pool of models works on shards of images.

A shard is written as a whole or not at all. OUTPUT holds `part-00000.parquet` ... (columns `image`,
`status`, `text`, `objects`, `error`; one row per image), `listing.jsonl` (the images of each
shard), `run.json` (the settings) and at the end `annotations.json` (COCO). A run that was killed
resumes with the missing shards; new images become further shards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError
from tqdm import tqdm

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write, read_image
from reasonseg.structures.masks import area_of
from reasonseg.structures.query import Query

if TYPE_CHECKING:
    from reasonseg.serving.reference_bank import By

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SEGMENTATION = pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])
OBJECT = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float64()),
        ("box", pa.list_(pa.float64())),
        ("segmentation", SEGMENTATION),
        ("question", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("status", pa.string()),
        ("text", pa.string()),
        ("objects", pa.list_(OBJECT)),
        ("error", pa.string()),
    ]
)


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


def pictures_of(source: str | Path) -> list[str]:
    """The paths of the images of a source, each once.

    The source is a folder (searched with all folders below it), a COCO file, or a parquet file with
    a column `image`. Raises `InputError` for anything else, or where there is no image.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(
            str(p.absolute())
            for p in source.rglob("*")
            if p.suffix.lower() in PICTURES and not p.name.startswith(".")
        )
    elif source.suffix == ".parquet" and source.is_file():
        table = pq.ParquetFile(source)
        if "image" not in table.schema_arrow.names:
            raise InputError(
                f"{source} has no column image (paths); it has "
                f"{', '.join(table.schema_arrow.names)}"
            )
        found = [str(v) for v in table.read(["image"]).column("image").to_pylist()]
    elif source.suffix == ".json" and source.is_file():
        found = _coco_pictures(source)
    else:
        raise InputError(f"{source} is no folder, no .parquet and no COCO .json")
    if not found:
        raise InputError(f"{source} names no pictures ({', '.join(PICTURES)})")
    return list(dict.fromkeys(found))


def _coco_pictures(source: Path) -> list[str]:
    try:
        names = [
            image["file_name"] for image in json.loads(source.read_text(encoding="utf-8"))["images"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source} is no COCO file: {error!r}") from None
    below = source.parent / "images"
    return [
        str((below / n if (below / n).is_file() else source.parent / n).absolute()) for n in names
    ]


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
        """Annotates shards, each to its own file; returns the number of images of each."""
        counts = [
            self.shard(int(number), list(paths))
            for number, paths in zip(batch["shard"], batch["images"], strict=True)
        ]
        return {"done": np.array(counts)}

    def shard(self, number: int, paths: list[str]) -> int:
        """Annotates one shard, writes its file and returns the number of its images."""
        sizes: dict[str, tuple[int, int]] = {}
        rows = list(self.rows(paths, sizes))
        told = {"sizes": json.dumps([sizes.get(path, (0, 0)) for path in paths])}
        with atomic_write(part(self.out, number)) as aside:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(told)), aside)
        return len(rows)

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


def part(out: Path, number: int) -> Path:
    """The path of the file of a shard."""
    return out / f"part-{number:05d}.parquet"


def listing(out: Path, found: list[str], size: int) -> list[list[str]]:
    """The images of each shard, also written to `listing.jsonl`.

    Listed images keep their shard; new ones become further shards of `size` images.
    """
    file = out / "listing.jsonl"
    shards = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.is_file()
        else []
    )
    listed = {path for shard in shards for path in shard}
    fresh = [path for path in found if path not in listed]
    shards += [fresh[k : k + size] for k in range(0, len(fresh), size)]
    with atomic_write(file) as aside:
        aside.write_text("".join(json.dumps(shard) + "\n" for shard in shards), encoding="utf-8")
    return shards


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

    A run that was killed resumes where it stopped. `address` is the address of a Ray cluster (None:
    this machine); `models` is the number of models that work in parallel (None: one per GPU, or
    without a GPU one per two cores); `shard` is the number of images per shard. Raises `InputError`
    where `out` holds a run with other settings.
    """
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    run, settings = out / "run.json", json.loads(json.dumps(asdict(task)))
    if (
        any(out.glob("part-*.parquet"))
        and run.is_file()
        and json.loads(run.read_text(encoding="utf-8")) != settings
    ):
        raise InputError(f"{out} holds annotations made with other settings; choose another folder")
    for left in out.glob(".part-*"):  # temporary files of a killed run
        left.unlink(missing_ok=True)
    with atomic_write(run) as aside:
        aside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    shards = listing(out, pictures_of(source), shard)
    todo = [
        {"shard": k, "images": paths}
        for k, paths in enumerate(shards)
        if not part(out, k).is_file()
    ]
    total = sum(map(len, shards))
    with tqdm(
        total=total,
        initial=total - sum(len(t["images"]) for t in todo),
        desc="annotate",
        unit="image",
        disable=not progress,
    ) as bar:
        for done in _worked(todo, task, out, address, models):
            bar.update(done)
    return finish(out, len(shards))


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


def finish(out: Path, shards: int) -> dict[str, int]:
    """Writes `annotations.json` from the parts; returns the number of images by status."""
    counts: dict[str, int] = {}
    labels: set[str] = set()
    for k in range(shards):
        for row in pq.read_table(part(out, k)).to_pylist():
            counts[row["status"]] = counts.get(row["status"], 0) + 1
            labels |= {o["label"] for o in row["objects"]}
    names = {label: number for number, label in enumerate(sorted(labels), 1)}
    with atomic_write(out / "annotations.json") as aside, aside.open("w", encoding="utf-8") as file:
        _write_coco(file, out, shards, names)
    return counts


def _write_coco(file, out: Path, shards: int, names: dict[str, int]) -> None:
    """Writes images, then annotations; only one part at a time is in memory."""
    file.write('{"images": [')
    number, first = 0, True
    for k in range(shards):
        table = pq.read_table(part(out, k))
        sizes = json.loads(table.schema.metadata[b"sizes"])
        for row, (height, width) in zip(table.select(["image"]).to_pylist(), sizes, strict=True):
            number += 1
            image = {"id": number, "file_name": row["image"], "height": height, "width": width}
            file.write(("" if first else ",\n") + json.dumps(image))
            first = False
    file.write('],\n"annotations": [')
    number, count, first = 0, 0, True
    for k in range(shards):
        for row in pq.read_table(part(out, k)).to_pylist():
            number += 1
            for o in row["objects"]:
                count += 1
                x0, y0, x1, y1 = o["box"] or (0, 0, 0, 0)
                annotation = {
                    "id": count,
                    "image_id": number,
                    "category_id": names[o["label"]],
                    "segmentation": o["segmentation"],
                    "area": area_of(o["segmentation"]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "score": o["score"],
                }
                file.write(("" if first else ",\n") + json.dumps(annotation))
                first = False
    categories = [{"id": k, "name": name} for name, k in names.items()]
    file.write('],\n"categories": ' + json.dumps(categories) + "}\n")
