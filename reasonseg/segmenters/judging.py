"""What an agent shows to its verifier, and how it reads the verdict."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from reasonseg.backbones.speakers.places.text import json_values, numbers_in, says_absent, spoken

COLOURS = {
    "red": (230, 25, 40),
    "green": (40, 200, 60),
    "blue": (40, 90, 240),
    "yellow": (250, 220, 20),
    "magenta": (240, 50, 230),
    "cyan": (60, 230, 240),
    "orange": (245, 130, 30),
    "white": (255, 255, 255),
}
REGIONS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
TINT = 0.35


def contrasting(image: np.ndarray, mask: np.ndarray, taken: set[str] | None = None) -> str:
    """The colour that is farthest from what is under and around a mask, and not `taken`."""
    near = np.asarray(ndimage.binary_dilation(mask, iterations=6), bool)
    mean = image[near].mean(0) if near.any() else np.full(3, 127.0)
    free = [c for c in COLOURS if c not in (taken or set())] or list(COLOURS)
    return max(free, key=lambda c: float(np.abs(np.array(COLOURS[c]) - mean).sum()))


def numbered(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The picture with masks `[n, h, w]` outlined and tinted, each with its number from 1."""
    shown = image.astype(np.float32).copy()
    taken: set[str] = set()
    spots = []
    for mask in masks:
        name = contrasting(image, mask, taken)
        taken = (taken | {name}) if len(taken) < len(COLOURS) - 1 else set()
        colour = np.array(COLOURS[name], np.float32)
        shown[mask] = (1 - TINT) * shown[mask] + TINT * colour
        edge = ndimage.binary_dilation(mask, iterations=2) & ~mask
        shown[edge] = colour
        spots.append((deepest(mask), COLOURS[name]))
    picture = Image.fromarray(shown.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    size = max(12, min(image.shape[:2]) // 22)
    font = ImageFont.load_default(size)
    for number, ((x, y), colour) in enumerate(spots, 1):
        r = size * 0.75
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255), outline=colour, width=2)
        draw.text((x, y), str(number), fill=(0, 0, 0), font=font, anchor="mm")
    return np.asarray(picture)


def deepest(mask: np.ndarray) -> tuple[float, float]:
    """The pixel (x, y) of a mask that is farthest from its edge."""
    if not mask.any():
        return mask.shape[1] / 2, mask.shape[0] / 2
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), mask.shape)
    return float(x), float(y)


def tinted(image: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    """The picture with one mask in a named colour."""
    shown = image.astype(np.float32).copy()
    shown[mask] = (1 - TINT) * shown[mask] + TINT * np.array(COLOURS[colour], np.float32)
    edge = ndimage.binary_dilation(mask, iterations=2) & ~mask
    shown[edge] = COLOURS[colour]
    return shown.astype(np.uint8)


def facts_of(masks: np.ndarray, labels: list[str]) -> str:
    """JSON about each mask: number, label, area, centre, box and region, as shares of the sides."""
    found: list[dict[str, Any]] = []
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), 1):
        height, width = mask.shape
        ys, xs = np.nonzero(mask)
        if not len(xs):
            continue
        x, y = xs.mean() / width, ys.mean() / height
        box = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
        found.append(
            {
                "number": number,
                "called": label[:60],
                "area": round(float(mask.mean()), 4),
                "centre": [round(float(x), 3), round(float(y), 3)],
                "box": [round(float(v), 3) for v in box],
                "region": REGIONS[min(int(3 * y), 2)][min(int(3 * x), 2)],
            }
        )
    return json.dumps(found)


def choice_request(question: str, facts: str, count: int) -> str:
    """The request to choose among numbered masks."""
    return (
        f"The first picture is a photo. In the second, {count} masks are numbered 1 to {count}. "
        f"About each mask, as shares of the picture's width and height: {facts}\n"
        f"Question: {question}\n"
        "Which masks answer it? Take all that do, and none that do not; a mask has to cover the "
        'whole thing. Answer in JSON: {"keep": [numbers], "why": "a few words"}. If none answers '
        'it, write {"keep": []}. If the thing is not in the photo at all, write {"absent": true}.'
    )


def duel_request(question: str, colours: tuple[str, str]) -> str:
    """The request to choose between two masks."""
    return (
        f"The first picture is a photo. In the second, mask A is {colours[0]}; in the third, mask "
        f"B is {colours[1]}.\nQuestion: {question}\nWhich mask answers it better? Answer A or B "
        "only."
    )


def kept_of(text: str, count: int) -> list[int] | None:
    """The chosen masks, from 0; an empty list for none; None where the words cannot be read."""
    said = spoken(text)
    for value in json_values(said):
        if isinstance(value, list) and all(isinstance(v, int) for v in value):
            value = {"keep": value}
        if isinstance(value, dict):
            if value.get("absent") is True:
                return []
            for name in ("keep", "final_answer_masks", "masks", "answer", "numbers"):
                if name in value:
                    return _numbers(value[name], count)
    if (
        re.search(r"\b(?:mask|number|no\.?|#)s?\b", said, re.IGNORECASE)
        or said.strip()[:1].isdigit()
    ):
        found = _numbers(numbers_in(said), count)
        if found:
            return found
    return [] if says_absent(said) else None


def says_none_at_all(text: str) -> bool:
    """Whether a verdict says that the thing is not in the picture."""
    return any(
        isinstance(v, dict) and v.get("absent") is True for v in json_values(spoken(text))
    ) or (kept_of(text, 1) is None and says_absent(spoken(text)))


def _numbers(values: Any, count: int) -> list[int] | None:
    if isinstance(values, int | float | str):
        values = [values]
    if not isinstance(values, list | tuple):
        return None
    found = []
    for value in values:
        try:
            number = int(float(value))
        except (TypeError, ValueError, OverflowError):
            continue
        if 1 <= number <= count and number - 1 not in found:
            found.append(number - 1)
    return found if found or not values else None


def winner_of(text: str) -> str | None:
    """`A` or `B`; None where the words say neither or both."""
    said = spoken(text)
    for value in json_values(said):
        if isinstance(value, dict):
            said = str(next(iter(value.values()), ""))
    found = set(re.findall(r"\b([AB])\b", said.upper() if len(said) < 4 else said))
    return found.pop() if len(found) == 1 else None
