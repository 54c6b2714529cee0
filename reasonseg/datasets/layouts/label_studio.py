"""Label Studio: a .json list of tasks, each with its image and annotations or predictions.

Reads polygons, rectangles and painted masks (brush). Where a task has annotations, predictions are
not used.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from reasonseg.datasets.layouts.base import PICTURES, Entry, Scan, is_file, size_of
from reasonseg.errors import InputError
from reasonseg.structures import brush
from reasonseg.structures.placing import Frame, Placing
from reasonseg.structures.polygons import checked_points, fill, pixels_of

KINDS = ("polygonlabels", "brushlabels", "rectanglelabels")


def entries(scan: Scan) -> list[Entry]:
    """One entry for each label of each task."""
    found = []
    for file in scan.ending(".json"):
        tree = scan.json(file)
        if not isinstance(tree, list):
            continue
        for number, task in enumerate(tree):
            if isinstance(task, dict) and isinstance(task.get("data"), dict):
                found += _of_task(scan, file, f"{file}, task {number}", task)
    return found


def _of_task(scan: Scan, file: Path, place: str, task: dict) -> list[Entry]:
    texts = [v for v in task["data"].values() if isinstance(v, str) and v]
    like = [
        v for v in texts if PurePosixPath(v.split("?")[0]).suffix.lower() in PICTURES or "?d=" in v
    ]
    image = next(iter([*like, *texts]), None)
    if image is None:
        return []
    try:
        picture, problem = _picture(scan, image, file.parent), ""
    except InputError as error:
        picture, problem = file.parent / Path(image).name, str(error)
    groups: dict[str, list[dict]] = {}
    for result in _results(scan, task, place):
        for label in result["value"][result["type"]]:
            groups.setdefault(str(label), []).append(result)

    def masks(frame: Frame, results: list[dict]) -> list[np.ndarray]:
        return [np.any([_mask(scan, r, frame, place) for r in results], 0)]

    return [
        Entry(
            picture,
            f"the {label}",
            (label,),
            lambda frame, mine=mine: masks(frame, mine),
            problem=problem,
        )
        for label, mine in groups.items()
    ]


def _picture(scan: Scan, image: str, near: Path) -> Path:
    """The image of a task: its path, URL, or the name of its upload without the added letters."""
    name = unquote(image.split("?d=")[-1])
    found = scan.picture(name, near)
    if not is_file(found):
        short = re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(name.replace("\\", "/")).name)
        found = scan.picture(short, near)
    return found


def _results(scan: Scan, task: dict, place: str) -> list[dict]:
    """The results of a task that mark something, each with its label.

    They are those of its first annotation that was not cancelled, or of its first prediction.
    """
    found: list[list[dict]] = []
    for key in ("annotations", "predictions"):
        made = task.get(key)
        for one in made if isinstance(made, list) else []:
            results = one.get("result") if isinstance(one, dict) else None
            if isinstance(results, list) and not one.get("was_cancelled"):
                found.append([r for r in results if _marks(r)])
                other = sorted(
                    {str(r.get("type")) for r in results if isinstance(r, dict)} - {*KINDS}
                )
                if other:
                    scan.say(f"{place}: results of type {', '.join(other)} are not used", lost=True)
        if found:
            break
    if len(found) > 1:
        scan.say(f"{place}: of {len(found)} annotations the first is used", lost=True)
    return found[0] if found else []


def _marks(result: Any) -> bool:
    kind = result.get("type") if isinstance(result, dict) else None
    value = result.get("value") if kind in KINDS else None
    labels = value.get(kind) if isinstance(value, dict) else None
    return isinstance(labels, list) and bool(labels)


def _mask(scan: Scan, result: dict, frame: Frame, place: str) -> np.ndarray:
    value = result["value"]
    size = size_of(result.get("original_height"), result.get("original_width"), place)
    on = scan.placing(size, frame, place)
    if result["type"] == "brushlabels":
        rle = value.get("rle")
        if not isinstance(rle, list):
            raise InputError(f"{place}: a brush mask has no list rle")
        return on.mask(brush.decode(rle, on.annotated))
    return on.finished(fill(_points(result["type"], value, on, place), on.canvas))


def _points(kind: str, value: dict[str, Any], on: Placing, place: str) -> np.ndarray:
    """The points of an outline on the canvas, from percent of its width and height."""
    height, width = on.canvas
    try:
        if kind == "rectanglelabels":
            x, y, w, h = (value[key] for key in ("x", "y", "width", "height"))
            corners = np.array([[0, 0], [w, 0], [w, h], [0, h]]) * (width / 100, height / 100)
            turn = np.deg2rad(
                float(value.get("rotation") or 0)
            )  # clockwise, around the corner x, y
            matrix = [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
            moved = corners @ matrix / (width / 100, height / 100) + (x, y)
            given = moved.tolist()
        else:
            given = value["points"]
        points = checked_points(given, (100, 100)) * (width / 100, height / 100)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{place}: an outline cannot be read ({error!r:.80})") from None
    if (points > (np.array([width, height]) * 1.02)).any():
        raise InputError(f"{place}: an outline reaches beyond 100 percent; are these pixels?")
    if len(points) < 3:
        raise InputError(f"{place}: an outline has {len(points)} points; it needs three")
    return pixels_of(points, on.canvas)
