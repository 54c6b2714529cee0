"""Predictions of any model, read from a file and scored as answers.

Three forms are read:

- JSON lines, one a sample: `{"id", "objects": [{"segmentation"}, ...], "status"?}`, as
  `rows.jsonl` of an evaluation;
- COCO results: a list of `{"image_id", "category_id", "segmentation", "score"?}`, for a folder in
  the layout of COCO, whose ids they name;
- a COCO data set with images, annotations and categories, as `export --format coco` writes it, for
  a folder of any layout.

Segmentations are run-length encodings or polygons. In COCO's forms a sample without a result has no
mask.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.layouts.base import key_of
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.polygons import coco_mask
from reasonseg.structures.sample import Sample

NOTHING = {"objects": [], "status": "absent"}


def read_predictions(file: str | Path, data: Any = None) -> dict[str, dict]:
    """The rows of a file of predictions by the ids of the samples.

    `data` is the data set that they are about. Raises `InputError` where the file is missing or
    malformed, and for COCO results of a data set that is no COCO folder.
    """
    if not Path(file).is_file():
        what = "is a folder; name a file" if Path(file).is_dir() else "does not exist"
        raise InputError(f"{file} {what}")
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error}") from None
    tree = _whole(text)
    if tree is not None:
        found = dict(_of_results(file, tree, data))
        ids = [data.id(i) for i in range(len(data))] if data is not None else []
        return {**{name: NOTHING for name in ids}, **found}
    rows = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{file}, line {number}: expected an object with id, objects and status"
            ) from None
    return rows


def _whole(text: str) -> Any:
    """The values of a file that is one JSON document in COCO's form; None for JSON lines."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_set = isinstance(tree, dict) and {"images", "annotations"} <= tree.keys()
    return tree if isinstance(tree, list) or is_set else None


def _of_results(file: str | Path, tree: Any, data: Any) -> Iterator[tuple[str, dict]]:
    """(id of a sample, row) of each sample that has results."""
    if isinstance(tree, list):
        keys = getattr(data, "result_keys", dict)()
        if not keys:
            raise InputError(
                f"{file} holds COCO results, whose image and category ids only a folder in the "
                "layout of COCO has; give a COCO data set or JSON lines with ids"
            )
        results = tree
    else:
        keys, results = _names(file, tree, data), tree["annotations"]
    rows: dict[str, dict] = {}
    for number, one in enumerate(results):
        if not isinstance(one, dict) or "segmentation" not in one:
            raise InputError(f"{file}, result {number}: it has no segmentation")
        key = key_of(one.get("image_id")), key_of(one.get("category_id"))
        name = keys.get(key)
        if name is not None:  # a result for a class that is not asked for counts for nothing
            row = rows.setdefault(name, {"objects": [], "status": "found"})
            row["objects"].append({"segmentation": one["segmentation"]})
    if results and not rows:
        raise InputError(
            f"{file}: none of its {len(results)} results is of an image and a category of this data"
        )
    yield from rows.items()


def _names(file: str | Path, tree: dict, data: Any) -> dict[tuple, str]:
    """The ids of samples by (image id, category id), found by file name and category name."""
    ids = [data.id(i) for i in range(len(data))] if data is not None else []
    known: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    for name in ids:  # by the whole path, and by the file name where only one image has it
        path, _, text = name.partition(": ")
        known[path, text] = name
        short = path.rsplit("/", 1)[-1], text
        counts[short] = counts.get(short, 0) + 1
        known.setdefault(short, name)
    known = {k: v for k, v in known.items() if counts.get(k, 1) == 1 or k[0] in v.split(": ")[0:1]}
    try:
        images = {key_of(i["id"]): str(i["file_name"]) for i in tree["images"]}
        labels = {key_of(c["id"]): str(c["name"]) for c in tree.get("categories") or []}
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is no COCO data set: {error!r}") from None
    found = {}
    for image, path in images.items():
        whole = path.replace("\\", "/")
        base = whole.rsplit("/", 1)[-1]
        for category, label in labels.items():
            tries = [(p, text) for p in (whole, base) for text in (f"the {label}", label)]
            name = next((known[key] for key in tries if key in known), None)
            if name is not None:
                found[image, category] = name
    return found


def answers_from(samples: list[Sample], rows: dict[str, dict]) -> list[Answer]:
    """The predicted answers of samples.

    Raises `InputError` where one is missing or a mask has another size than its image.
    """
    answers = []
    for sample in samples:
        if sample.id not in rows:
            raise InputError(f"the predictions have no line with id {sample.id!r}")
        row = rows[sample.id]
        objects = row.get("objects") or []
        if not isinstance(objects, list) or any(
            not isinstance(o, dict) or "segmentation" not in o for o in objects
        ):
            raise InputError(f"predictions, id {sample.id!r}: every object needs a segmentation")
        place, size = f"predictions, id {sample.id!r}", sample.query.size
        for o in objects:
            given = o["segmentation"].get("size") if isinstance(o["segmentation"], dict) else None
            if given is not None and list(given) != list(size):
                raise InputError(f"{place}: masks must be {list(size)}, not {given}")
        masks = [coco_mask(o["segmentation"], size, place) for o in objects]
        status = "found" if masks else row.get("status", "no_seg")
        stack = np.array(masks, bool).reshape(-1, *size)
        answers.append(Answer("", stack, np.ones(len(masks)), [""] * len(masks), status))
    return answers
