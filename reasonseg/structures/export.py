"""Writes answers in other formats: COCO, LabelMe, YOLO-seg, PNG masks, Label Studio predictions.

The input is the folder of an answer (`answer.json`), the output of `annotate`, or answers in
memory. LabelMe, YOLO and Label Studio store outlines (`structures/outlines.py`): each connected
part of a mask becomes its own polygon, and holes are joined to it by a bridge. Label Studio gets a
painted mask where a part has a hole or the width of one pixel. Each format is read again by
`finetune`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from reasonseg.errors import InputError
from reasonseg.structures import brush
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write, make_folder
from reasonseg.structures.masks import area_of, from_rle
from reasonseg.structures.outlines import area, outlines

INSIDE = 0.25  # pixels from a pixel's corner: tools that round and tools that cut find the pixel


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
        tree = json.loads((source / "answer.json").read_text(encoding="utf-8"))
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


@dataclass
class Exported:
    """What was written: numbers of images and masks, and of parts of one pixel's width.

    Such parts are polygons without an area; tools that fill polygons by their area lose them.
    """

    images: int = 0
    masks: int = 0
    thin: int = 0

    def __str__(self) -> str:
        said = f"{self.masks} masks on {self.images} images"
        lost = "parts are one pixel wide: this package reads them, tools that fill by area do not"
        return f"{said}; {self.thin} {lost}" if self.thin else said


def polygons(rle: dict, count: Exported) -> list[np.ndarray]:
    """The outlines of a mask given as COCO RLE, float `[p, 2]` each, in pixels.

    Parts of one pixel's width are counted.
    """
    found = outlines(from_rle(rle))
    count.thin += sum(area(part) == 0 for part in found)
    return [part + INSIDE for part in found]


def beside(image: str, out: Path) -> str:
    """The path of an image relative to the folder `out`.

    Where there is no such file: the path as it is, or its last part if it is absolute.
    """
    path = Path(image)
    if not path.is_file():
        return path.name if path.is_absolute() else image
    try:
        return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


def to_coco(found: Iterable[Record], out: Path, count: Exported) -> None:
    """Writes `annotations.json`: images, annotations with COCO RLE and scores, and categories."""
    images, annotations, names = [], [], {}
    for number, record in enumerate(found, 1):
        images.append(
            {
                "id": number,
                "file_name": beside(record.image, out),
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


def to_labelme(found: Iterable[Record], out: Path, count: Exported) -> None:
    """Writes one JSON file per image, with its name; the parts of one mask share a group id."""
    for name, record in _named(found):
        shapes = []
        for group, o in enumerate(record.objects):
            parts = polygons(o["segmentation"], count)
            more = {
                "label": o["label"],
                "shape_type": "polygon",
                "flags": {},
                "group_id": group if len(parts) > 1 else None,
                "description": f"score {o['score']:.3f}",
            }
            shapes += [{**more, "points": part.tolist()} for part in parts]
        tree = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": beside(record.image, out),
            "imageData": None,
            "imageHeight": record.size[0],
            "imageWidth": record.size[1],
        }
        _json(out / f"{name}.json", tree)


def to_yolo(found: Iterable[Record], out: Path, count: Exported) -> None:
    """Writes `labels/NAME.txt`, a copy of the image in `images/`, and `data.yaml`.

    Each line is one part of a mask: its class, then its outline as fractions 0..1 of width and
    height. `data.yaml` holds the class names.
    """
    names: dict[str, int] = {}
    for folder in ("labels", "images"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, record in _named(found):
        lines, (height, width) = [], record.size
        for o in record.objects:
            number = names.setdefault(o["label"], len(names))
            for part in polygons(o["segmentation"], count):
                values = (f"{v:.7f}" for v in (part / (width, height)).flatten())
                lines.append(" ".join([str(number), *values]))
        _text(out / "labels" / f"{name}.txt", "".join(line + "\n" for line in lines))
        if Path(record.image).is_file():
            with atomic_write(out / "images" / f"{name}{Path(record.image).suffix}") as aside:
                shutil.copyfile(record.image, aside)
    tree = {"path": ".", "train": "images", "val": "images"}
    tree |= {"names": {k: n for n, k in names.items()}}
    _text(out / "data.yaml", yaml.safe_dump(tree, allow_unicode=True))


def to_png(found: Iterable[Record], out: Path, count: Exported) -> None:
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
                "image": beside(record.image, out),
                "label": o["label"],
                "score": o["score"],
            }
    _json(out / "labels.json", labels)


def to_label_studio(found: Iterable[Record], out: Path, count: Exported) -> None:
    """Writes `tasks.json`, which Label Studio imports: images with predictions.

    The labels have from_name `label` (outlines) or `brush` (painted masks) and to_name `image`;
    coordinates are in percent, 0..100.
    """
    tasks = []
    for record in found:
        results = []
        for k, o in enumerate(record.objects):
            for j, value in enumerate(_drawn(o, record.size)):
                kind = "polygonlabels" if "points" in value else "brushlabels"
                results.append(
                    {
                        "id": f"{k}-{j}",
                        "type": kind,
                        "from_name": "label" if kind == "polygonlabels" else "brush",
                        "to_name": "image",
                        "value": {**value, kind: [o["label"]]},
                        "original_width": record.size[1],
                        "original_height": record.size[0],
                        "score": o["score"],
                    }
                )
        score = max((o["score"] for o in record.objects), default=0.0)
        prediction = {"model_version": "reasonseg", "score": score, "result": results}
        image = beside(record.image, out)
        tasks.append({"data": {"image": image}, "predictions": [prediction]})
    _json(out / "tasks.json", tasks)


def _drawn(o: dict[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
    """A mask as polygons; as a painted mask where a part has a hole or one pixel's width."""
    mask = from_rle(o["segmentation"])
    parts = outlines(mask)
    if any(area(part) == 0 or len(np.unique(part, axis=0)) < len(part) for part in parts):
        return [{"format": "rle", "rle": brush.encode(mask)}]
    scale = (100 / size[1], 100 / size[0])
    return [{"points": ((part + INSIDE) * scale).tolist(), "closed": True} for part in parts]


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
    _text(file, json.dumps(tree, ensure_ascii=False, indent=1) + "\n")


def _text(file: Path, text: str) -> None:
    with atomic_write(file) as aside:
        aside.write_text(text, encoding="utf-8")


FORMATS: dict[str, Callable[[Iterable[Record], Path, Exported], None]] = {
    "coco": to_coco,
    "labelme": to_labelme,
    "yolo": to_yolo,
    "png": to_png,
    "labelstudio": to_label_studio,
}


def export(found: Iterable[Record], out: str | Path, kind: str) -> Exported:
    """Writes records into the folder `out` in the format `kind`, and says what was written.

    `kind` is `coco`, `labelme`, `yolo`, `png` or `labelstudio`. Raises `InputError` for any
    other, and where `out` is a file.
    """
    if kind not in FORMATS:
        raise InputError(f"no format {kind!r}; there are {', '.join(FORMATS)}")
    make_folder(out)
    count = Exported()

    def counted() -> Iterator[Record]:
        for record in found:
            count.images, count.masks = count.images + 1, count.masks + len(record.objects)
            yield record

    FORMATS[kind](counted(), Path(out), count)
    return count
