"""Grammars: how each family of models writes boxes and points, as functions of the text.

A grammar gives what was said, in the model's own numbers; it never raises. `GRAMMARS` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from reasonseg.backbones.speakers.places.text import NUMBER, json_values, numbers_in, spoken

MOST = 200  # things that are taken of one answer
Numbers = tuple[float, float, float, float]


@dataclass
class Said:
    """One thing as a model said it: a box of four numbers, points, or both, and its label.

    A point is (x, y, 1 on the thing or 0 off it).
    """

    box: Numbers | None = None
    points: list[tuple[float, float, int]] = field(default_factory=list)
    label: str = ""


def _four(values: Any) -> Numbers | None:
    """Four finite numbers, also as two pairs, or None."""
    if isinstance(values, str):
        values = numbers_in(values)
    if isinstance(values, dict):
        for names in (
            ("x1", "y1", "x2", "y2"),
            ("x_min", "y_min", "x_max", "y_max"),
            ("xmin", "ymin", "xmax", "ymax"),
            ("left", "top", "right", "bottom"),
        ):
            if all(name in values for name in names):
                return _four([values[name] for name in names])
        return None
    if not isinstance(values, list | tuple):
        return None
    if len(values) == 2 and all(isinstance(v, list | tuple) and len(v) == 2 for v in values):
        values = [*values[0], *values[1]]
    if len(values) == 1:
        return _four(values[0])
    numbers = [n for v in values if (n := _number(v)) is not None]
    if len(values) != 4 or len(numbers) != 4:
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e7 else None  # also not for infinite or not a number


def _pair(values: Any) -> tuple[float, float, int] | None:
    if isinstance(values, str):
        values = numbers_in(values)
    if isinstance(values, dict) and {"x", "y"} <= set(values):
        values = [values["x"], values["y"]]
    if not isinstance(values, list | tuple) or not 2 <= len(values) <= 3:
        return None
    x, y = _number(values[0]), _number(values[1])
    return None if x is None or y is None else (x, y, 1)


def _text(value: Any) -> str:
    return " ".join(value.split())[:200] if isinstance(value, str) else ""


BOXES = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "boxes", "bboxes", "bbox_list")
POINTS = ("point_2d", "point", "points", "points_1", "points_2", "points_3", "keypoints", "coords")
LABELS = ("label", "name", "object", "text", "text_content", "phrase", "category", "class")


def from_json(text: str) -> list[Said]:
    """JSON with `bbox_2d`, `point_2d`, `box_2d` ... (Qwen2.5-VL, Qwen3-VL, GLM-V, Gemini, Seg-Zero
    and most others); also bare lists of numbers.
    """
    return [s for value in json_values(spoken(text)) for s in _walk(value, "")][:MOST]


def _walk(value: Any, label: str, depth: int = 0) -> Iterable[Said]:
    if depth > 8:
        return
    if isinstance(value, dict):
        yield from _walk_dict(value, label, depth)
    elif isinstance(value, list | tuple):
        if (box := _four(value)) is not None:
            yield Said(box, label=label)
        elif len(value) == 2 and all(_number(v) is not None for v in value):
            pair = _pair(value)
            yield Said(None, [pair] if pair else [], label)
        else:
            for part in value[:MOST]:
                yield from _walk(part, label, depth + 1)


def _walk_dict(value: dict, label: str, depth: int) -> Iterable[Said]:
    label = next((_text(value[k]) for k in LABELS if _text(value.get(k))), label)
    boxes: list[Numbers] = []
    points: list[tuple[float, float, int]] = []
    inside: list[Any] = []
    for key, part in value.items():
        name = str(key).lower()
        if name in BOXES:
            if (box := _four(part)) is not None:
                boxes.append(box)
            elif isinstance(part, list | tuple):
                several = [b for p in part if (b := _four(p)) is not None]
                boxes += several
                inside += [] if several else [part]
        elif name in POINTS:
            if (pair := _pair(part)) is not None:
                points.append(pair)
            elif isinstance(part, list | tuple):
                points += [p for q in part if (p := _pair(q)) is not None]
        elif isinstance(part, dict | list | tuple):
            inside.append(part)
    if (flat := _four(value)) is not None:
        boxes.append(flat)
    if len(boxes) > 1:
        yield from (Said(box, label=label) for box in boxes)
    elif boxes or points:
        yield Said(boxes[0] if boxes else None, points, label)
    else:
        for part in inside:
            yield from _walk(part, label, depth + 1)


BRACKETED = rf"[\[(<]\s*({NUMBER})\s*,\s*({NUMBER})\s*[,;]\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])>]"
PAIRED = rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)\s*,?\s*\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)"


def from_brackets(text: str) -> list[Said]:
    """Every `[a, b, c, d]` or `(a, b), (c, d)` of a text; what any model may fall back to."""
    found = [m.groups() for m in re.finditer(f"{PAIRED}|{BRACKETED}", spoken(text))]
    rows = [[g for g in groups if g is not None] for groups in found]
    return [Said(box) for row in rows[:MOST] if (box := _four(row)) is not None]


def from_qwen2(text: str) -> list[Said]:
    """Qwen2-VL and LENS: `<|object_ref_start|>name<|object_ref_end|>` before
    `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, its special tokens kept or not.
    """
    return _tagged(
        text,
        r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>",
        r"<\|box_start\|>(.*?)(?:<\|box_end\|>|(?=<\|)|\Z)",
    )


def from_internvl(text: str) -> list[Said]:
    """InternVL 2 to 3, CogVLM: `<ref>name</ref><box>[[x1, y1, x2, y2], ...]</box>`."""
    return _tagged(text, r"<ref>(.*?)</ref>", r"<box>(.*?)(?:</box>|(?=<)|\Z)")


def from_deepseek(text: str) -> list[Said]:
    """DeepSeek-VL2: `<|ref|>name<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`; a broken pair is
    left out.
    """
    return _tagged(
        text, r"<\|ref\|>((?:(?!<\|).)*)<\|/ref\|>", r"<\|det\|>(.*?)(?:<\|/det\|>|(?=<\|)|\Z)"
    )


def _tagged(text: str, name: str, place: str) -> list[Said]:
    """Boxes in `place` tags, each with the name in the last `name` tag before it."""
    text = spoken(text)
    marks = re.compile(f"(?:{name})|(?:{place})", re.DOTALL)
    found: list[Said] = []
    label = ""
    for mark in marks.finditer(text):
        named, placed = mark.group(1), mark.group(2)
        if named is not None:
            label = _text(named)
            continue
        numbers = numbers_in(placed)
        whole = len(numbers) // 4 * 4
        for k in range(0, whole, 4):
            if (box := _four(numbers[k : k + 4])) is not None:
                found.append(Said(box, label=label))
        if whole == 0 and len(numbers) == 2:
            found.append(Said(None, [(numbers[0], numbers[1], 1)], label))
    return found[:MOST] or from_brackets(text)


def from_minicpm(text: str) -> list[Said]:
    """MiniCPM-V: `<ref>name</ref><box>x1 y1 x2 y2</box>`, separated by spaces."""
    return from_internvl(text)


LOCATED = re.compile(
    r"(?:<loc(\d{4})>)(?:<loc(\d{4})>)(?:<loc(\d{4})>)(?:<loc(\d{4})>)"
    r"(?:<seg\d{3}>)*\s*([^;<]*)"
)


def from_paligemma(text: str) -> list[Said]:
    """PaliGemma: `<locY1><locX1><locY2><locX2>` (order yxyx), codes of a mask, a label."""
    found = []
    for mark in LOCATED.finditer(spoken(text)):
        a, b, c, d, label = mark.groups()
        found.append(Said((float(a), float(b), float(c), float(d)), label=_text(label)))
    return found[:MOST]


FLORENCE = re.compile(r"([^<]*)((?:<loc_\d+>|<sep>|<poly>|</poly>)+)")


def from_florence(text: str) -> list[Said]:
    """Florence-2: `label<loc_x1><loc_y1><loc_x2><loc_y2>`; of a polygon, the box around it."""
    text = re.sub(r"</?s>|<pad>", "", spoken(text))
    found: list[Said] = []
    label = ""
    for mark in FLORENCE.finditer(text):
        label = _text(mark.group(1).strip(" ,.")) or label
        numbers = [float(n) for n in re.findall(r"<loc_(\d+)>", mark.group(2))]
        if len(numbers) % 4 == 0 and "poly" not in mark.group(2) and len(numbers) <= 16:
            boxes = [numbers[k : k + 4] for k in range(0, len(numbers), 4)]
        elif len(numbers) >= 6:
            xs, ys = numbers[0 : len(numbers) // 2 * 2 : 2], numbers[1::2]
            boxes = [[min(xs), min(ys), max(xs), max(ys)]]
        else:
            boxes = []
        found += [Said(box, label=label) for b in boxes if (box := _four(b)) is not None]
    return found[:MOST]


KOSMOS = re.compile(r"(?:<phrase>(.*?)</phrase>)?\s*<object>(.*?)(?:</object>|\Z)", re.DOTALL)
CELLS = 32


def from_kosmos(text: str) -> list[Said]:
    """Kosmos-2: `<phrase>..</phrase><object><patch_index_0044><patch_index_0863></object>`; numbers
    are 0..1.

    Corners are the middles of their cells, or the cells' outer edges where both lie in one row or
    column (`Kosmos2Processor`).
    """
    found: list[Said] = []
    for name, inside in KOSMOS.findall(spoken(text)):
        for part in inside.split("</delimiter_of_multi_objects/>"):
            cells = [int(n) for n in re.findall(r"<patch_index_(\d+)>", part)]
            if len(cells) != 2 or max(cells) >= CELLS**2:
                continue
            (y0, x0), (y1, x1) = (divmod(c, CELLS) for c in cells)
            flat = x0 == x1 or y0 == y1
            low, high = (0.0, 1.0) if flat else (0.5, 0.5)
            box = ((x0 + low) / CELLS, (y0 + low) / CELLS, (x1 + high) / CELLS, (y1 + high) / CELLS)
            found.append(Said(box, label=_text(name)))
    return found[:MOST]


POINT = re.compile(r"<points?\b([^>]*?)/?>(?:([^<]*)</points?>)?", re.DOTALL)
PLACE = re.compile(rf"""\b([xy])(\d*)\s*=\s*["']?\s*({NUMBER})""")


def from_molmo(text: str) -> list[Said]:
    """Molmo: `<point x="61.5" y="40.4" alt="..">label</point>` and `<points x1=".." y1=".." ..>`;
    numbers are per cent. Each point is a thing of its own.
    """
    found: list[Said] = []
    for attributes, inner in POINT.findall(spoken(text)):
        if "coords" in attributes:
            continue
        named = re.search(r"""alt\s*=\s*["']([^"']*)""", attributes)
        label = _text(inner) or _text(named[1] if named else "")
        values: dict[str, dict[str, float]] = {}
        for axis, number, value in PLACE.findall(attributes):
            values.setdefault(number, {})[axis] = float(value)
        found += [
            Said(None, [(v["x"], v["y"], 1)], label)
            for v in values.values()
            if {"x", "y"} <= set(v)
        ]
    return found[:MOST]


COORDS = re.compile(r"<(?:points|tracks)\b[^>]*?coords\s*=\s*[\"']([^\"'>]*)[\"']?[^>]*>([^<]*)")


def from_molmo2(text: str) -> list[Said]:
    """Molmo2: `<points coords="IMAGE ID XXX YYY ID XXX YYY;...">label</points>`; numbers are
    0..1000.
    """
    found = []
    for coords, label in COORDS.findall(spoken(text)):
        for part in re.split(r"[;\t]", coords):
            numbers = re.findall(r"[\d.]+", part)[1:]  # the first is the image
            for k in range(0, len(numbers) - 2, 3):
                x, y = _number(numbers[k + 1]), _number(numbers[k + 2])
                if x is not None and y is not None:
                    found.append(Said(None, [(x, y, 1)], _text(label)))
    return found[:MOST]


def from_segr1(text: str) -> list[Said]:
    """Seg-R1: `<bbox>[..]</bbox>`, `<points>[[..]]</points>`, `<labels>[1, 0]</labels>`; a point
    belongs to the box that it lies in.
    """
    text = spoken(text)

    def inside(tag: str) -> list[float]:
        return [
            n
            for part in re.findall(rf"<{tag}>(.*?)(?:</{tag}>|\Z)", text, re.DOTALL)
            for n in numbers_in(part)
        ]

    boxes, points, on = inside("bbox"), inside("points"), inside("labels")
    found = [
        Said(box) for k in range(0, len(boxes) // 4 * 4, 4) if (box := _four(boxes[k : k + 4]))
    ]
    for k in range(len(points) // 2):
        x, y = points[2 * k], points[2 * k + 1]
        mark = int(on[k]) if k < len(on) and on[k] in (0, 1) else 1
        for thing in found:
            x0, y0, x1, y1 = thing.box or (0, 0, 0, 0)
            if min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1):
                thing.points.append((x, y, mark))
    return found[:MOST]


GRAMMARS: dict[str, Callable[[str], list[Said]]] = {
    "json": from_json,
    "qwen2": from_qwen2,
    "internvl": from_internvl,
    "deepseek": from_deepseek,
    "minicpm": from_minicpm,
    "paligemma": from_paligemma,
    "florence": from_florence,
    "kosmos": from_kosmos,
    "molmo": from_molmo,
    "molmo2": from_molmo2,
    "segr1": from_segr1,
    "brackets": from_brackets,
}


def read_any(text: str) -> list[Said]:
    """What the first grammar that finds something finds; for models that are not known."""
    for name in (
        "qwen2",
        "deepseek",
        "kosmos",
        "molmo2",
        "molmo",
        "paligemma",
        "florence",
        "segr1",
    ):
        if MARKS[name] in text and (found := GRAMMARS[name](text)):
            return found
    for name in ("json", "internvl", "brackets"):
        if found := GRAMMARS[name](text):
            return found
    return []


MARKS = {
    "qwen2": "<|box_start|>",
    "deepseek": "<|det|>",
    "kosmos": "<patch_index_",
    "molmo2": "coords",
    "molmo": "<point",
    "paligemma": "<loc",
    "florence": "<loc_",
    "segr1": "<bbox>",
}
