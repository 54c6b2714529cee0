"""Writes answers in other formats: COCO, LabelMe, YOLO-seg, PNG masks, Label Studio predictions.

The input is the folder of an answer (`answer.json`), the output of `annotate`, or answers in
memory. LabelMe, YOLO and Label Studio store outlines: each connected part of a mask becomes its own
polygon, and holes are lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write
from reasonseg.structures.masks import area_of, from_rle

MIN_AREA = 4.0  # pixels; smaller parts of a mask are not exported as polygons


@dataclass(frozen=True)
class Record:
    """One image with its objects (`label`, `score`, `box`, `segmentation`, as in `answer.json`).

    `image` is its path or name; `size` is (height, width) in pixels.
    """

    image: str
    size: tuple[int, int]
    objects: list[dict[str, Any]]

    @classmethod
    def of(cls, answer: Answer, image: str) -> Record:
        """The record of an answer in memory."""
        return cls(
            image, (answer.masks.shape[1], answer.masks.shape[2]), answer.to_dict()["objects"]
        )


def records(source: str | Path) -> Iterator[Record]:
    """The records of a folder written by `ask --out` or by `annotate`.

    Images that `annotate` could not read are skipped. Raises `InputError` where the folder is
    neither.
    """
    source = Path(source)
    if (source / "answer.json").is_file():
        tree = json.loads((source / "answer.json").read_text())
        size = tree["meta"].get("size") or (
            tree["objects"][0]["segmentation"]["size"] if tree["objects"] else (0, 0)
        )
        yield Record(
            tree["meta"].get("image") or source.name + ".png", (size[0], size[1]), tree["objects"]
        )
        return
    parts = sorted(source.glob("part-*.parquet"))
    if not parts:
        raise InputError(
            f"{source} holds no answer.json and no part-*.parquet; name the folder of ask --out "
            "or of annotate"
        )
    import pyarrow.parquet as pq

    for file in parts:
        table = pq.read_table(file)
        sizes = json.loads(table.schema.metadata[b"sizes"])
        for row, size in zip(table.to_pylist(), sizes, strict=True):
            if row["status"] != "error":
                yield Record(row["image"], (size[0], size[1]), row["objects"])


def polygons(rle: dict) -> list[np.ndarray]:
    """Outlines of the parts of a mask, `[p, 2]` (x, y) in pixels each, the largest first.

    `rle` is a COCO run-length encoding. Parts below `MIN_AREA` are left out.
    """
    import supervision as sv

    found = [p for p in sv.mask_to_polygons(from_rle(rle)) if len(p) >= 3]
    sizes = [_area(p) for p in found]
    order = np.argsort(sizes)[::-1]
    return [found[i] for i in order if sizes[i] >= MIN_AREA]


def _area(points: np.ndarray) -> float:
    """Area of a polygon `[p, 2]` in square pixels (shoelace formula)."""
    x, y = points.T.astype(float)
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def to_coco(found: Iterable[Record], out: Path) -> None:
    """Writes `annotations.json`: images, annotations with COCO RLE and scores, and categories."""
    images, annotations, names = [], [], {}
    for number, record in enumerate(found, 1):
        images.append(
            {
                "id": number,
                "file_name": record.image,
                "height": record.size[0],
                "width": record.size[1],
            }
        )
        for o in record.objects:
            x0, y0, x1, y1 = o["box"]
            category = names.setdefault(o["label"], len(names) + 1)
            one = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": category,
                "iscrowd": 0,
                "score": o["score"],
            }
            one |= {
                "segmentation": o["segmentation"],
                "area": area_of(o["segmentation"]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            annotations.append(one)
    categories = [{"id": k, "name": name} for name, k in names.items()]
    _json(
        out / "annotations.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )


def to_labelme(found: Iterable[Record], out: Path) -> None:
    """Writes one JSON file per image, with its name; the parts of one mask share a group id."""
    for name, record in _named(found):
        shapes = []
        for group, o in enumerate(record.objects):
            parts = polygons(o["segmentation"])
            for part in parts:
                shape = {
                    "label": o["label"],
                    "points": part.astype(float).tolist(),
                    "shape_type": "polygon",
                    "flags": {},
                }
                shapes.append(
                    shape
                    | {
                        "group_id": group if len(parts) > 1 else None,
                        "description": f"score {o['score']:.3f}",
                    }
                )
        tree = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": record.image,
            "imageData": None,
        }
        _json(
            out / f"{name}.json",
            tree | {"imageHeight": record.size[0], "imageWidth": record.size[1]},
        )


def to_yolo(found: Iterable[Record], out: Path) -> None:
    """Writes `labels/NAME.txt` and `data.yaml`, which holds the class names.

    Each line is one part of a mask: its class, then its outline as fractions 0..1 of width and
    height.
    """
    names: dict[str, int] = {}
    (out / "labels").mkdir(parents=True, exist_ok=True)
    for name, record in _named(found):
        lines, (height, width) = [], record.size
        for o in record.objects:
            number = names.setdefault(o["label"], len(names))
            for part in polygons(o["segmentation"]):
                lines.append(
                    " ".join(
                        [
                            str(number),
                            *(f"{v:.6f}" for v in (part / (width, height)).clip(0, 1).flatten()),
                        ]
                    )
                )
        with atomic_write(out / "labels" / f"{name}.txt") as aside:
            aside.write_text("".join(line + "\n" for line in lines))
    with atomic_write(out / "data.yaml") as aside:
        aside.write_text(
            yaml.safe_dump(
                {
                    "path": ".",
                    "train": "images",
                    "val": "images",
                    "names": {k: n for n, k in names.items()},
                }
            )
        )


def to_png(found: Iterable[Record], out: Path) -> None:
    """Writes one PNG (0 and 255) per mask, `NAME-0.png` ..., and `labels.json`.

    `labels.json` gives the image, label and score of each PNG.
    """
    labels = {}
    for name, record in _named(found):
        for k, o in enumerate(record.objects):
            with atomic_write(out / f"{name}-{k}.png") as aside:
                Image.fromarray(from_rle(o["segmentation"]).astype(np.uint8) * 255).save(
                    aside, format="PNG"
                )
            labels[f"{name}-{k}.png"] = {
                "image": record.image,
                "label": o["label"],
                "score": o["score"],
            }
    _json(out / "labels.json", labels)


def to_label_studio(found: Iterable[Record], out: Path) -> None:
    """Writes `tasks.json`, which Label Studio imports: images with polygon predictions.

    The labels have from_name `label` and to_name `image`; coordinates are in percent, 0..100.
    """
    tasks = []
    for record in found:
        height, width = record.size
        results = []
        for k, o in enumerate(record.objects):
            for j, part in enumerate(polygons(o["segmentation"])):
                points = (part / (width, height) * 100).tolist()
                value = {"points": points, "polygonlabels": [o["label"]], "closed": True}
                one = {
                    "id": f"{k}-{j}",
                    "type": "polygonlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "value": value,
                }
                results.append(
                    one | {"original_width": width, "original_height": height, "score": o["score"]}
                )
        score = max((o["score"] for o in record.objects), default=0.0)
        prediction = {"model_version": "reasonseg", "score": score, "result": results}
        tasks.append({"data": {"image": record.image}, "predictions": [prediction]})
    _json(out / "tasks.json", tasks)


def _named(found: Iterable[Record]) -> Iterator[tuple[str, Record]]:
    """(name, record) pairs: the image's name, with a number where several images share it."""
    used: set[str] = set()
    for record in found:
        stem = Path(record.image).stem
        name = next(
            n for n in (stem, *(f"{stem}-{k}" for k in range(2, len(used) + 3))) if n not in used
        )
        used.add(name)
        yield name, record


def _json(file: Path, tree: Any) -> None:
    with atomic_write(file) as aside:
        aside.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n")


FORMATS: dict[str, Callable[[Iterable[Record], Path], None]] = {
    "coco": to_coco,
    "labelme": to_labelme,
    "yolo": to_yolo,
    "png": to_png,
    "labelstudio": to_label_studio,
}


def export(found: Iterable[Record], out: str | Path, kind: str) -> None:
    """Writes records into the folder `out` in the format `kind`.

    `kind` is `coco`, `labelme`, `yolo`, `png` or `labelstudio`. Raises `InputError` for any
    other.
    """
    if kind not in FORMATS:
        raise InputError(f"no format {kind!r}; there are {', '.join(FORMATS)}")
    Path(out).mkdir(parents=True, exist_ok=True)
    FORMATS[kind](found, Path(out))
