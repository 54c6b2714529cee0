"""What `annotate` writes, and how a run goes on.

OUTPUT holds `part-00000.parquet` ... (columns `image`, `status`, `text`, `objects`, `error`; one
row per image), `listing.jsonl` (the images of each shard), `run.json` (the settings and the
weights) and at the end `annotations.json` (COCO). The metadata of a part hold the size of each
image, and the bytes and time of change of its file when it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasonseg.config.schema import differences
from reasonseg.datasets.layouts.base import PICTURES, left_by_system
from reasonseg.errors import InputError
from reasonseg.structures.images import atomic_write
from reasonseg.structures.masks import area_of

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
class Row:
    """A row of a part, the (height, width) of its image, and the (bytes, time) of its file."""

    values: dict[str, Any]
    size: tuple[int, int]
    stamp: tuple[int, int] | None


def stamp_of(path: str) -> tuple[int, int] | None:
    """The bytes of a file and the time of its last change in ns; None where it is not there."""
    try:
        about = Path(path).stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def write_part(file: Path, rows: list[Row]) -> None:
    """Writes the file of a shard."""
    told = {
        "sizes": json.dumps([row.size for row in rows]),
        "stamps": json.dumps([row.stamp for row in rows]),
    }
    table = pa.Table.from_pylist([row.values for row in rows], SCHEMA.with_metadata(told))
    with atomic_write(file) as aside:
        pq.write_table(table, aside)


def rows_of(file: Path, columns: list[str] | None = None) -> dict[str, Row]:
    """The rows of a part by image, with all or some of their columns."""
    table = pq.read_table(file, columns=columns)
    about = table.schema.metadata
    sizes = json.loads(about[b"sizes"])
    stamps = json.loads(about.get(b"stamps", b"null")) or [None] * len(sizes)
    return {
        row["image"]: Row(row, tuple(size), tuple(stamp) if stamp else None)
        for row, size, stamp in zip(table.to_pylist(), sizes, stamps, strict=True)
    }


def to_do(out: Path, number: int, paths: list[str]) -> list[str]:
    """The images of a shard that are not done: missing, changed since, or not readable before."""
    file = part(out, number)
    if not file.is_file():
        return paths
    rows = rows_of(file, ["image", "status"])
    return [
        path
        for path in paths
        if path not in rows
        or rows[path].values["status"] == "error"
        or rows[path].stamp != stamp_of(path)
    ]


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Makes sure that no other run writes to `out`. Raises `InputError` where one does."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise InputError(f"another run writes to {out}; wait for it, or choose another") from None


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Writes `run.json`. Raises `InputError` where `out` holds a run that differs, and says how."""
    run = out / "run.json"
    if any(out.glob("part-*.parquet")) and run.is_file():
        kept = json.loads(run.read_text(encoding="utf-8"))
        if other := differences(kept, settings):
            raise InputError(
                f"{out} holds annotations made with other settings or weights "
                f"({'; '.join(other)}); choose another folder"
            )
    with atomic_write(run) as aside:
        aside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


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
            if p.suffix.lower() in PICTURES and not left_by_system(p.relative_to(source))
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
    """Writes images, then annotations; only one part at a time is in memory.

    Images that could not be read are listed apart, under `errors`.
    """
    file.write('{"images": [')
    number, first, errors = 0, True, []
    for k in range(shards):
        for path, row in rows_of(part(out, k), ["image", "status", "error"]).items():
            number += 1
            if row.values["status"] == "error":
                errors.append({"id": number, "file_name": path, "error": row.values["error"]})
                continue
            image = {"id": number, "file_name": path, "height": row.size[0], "width": row.size[1]}
            file.write(("" if first else ",\n") + json.dumps(image))
            first = False
    file.write('],\n"errors": ' + json.dumps(errors) + ',\n"annotations": [')
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
