"""What the values of mask files mean: one thing, or several classes, and which are void.

Masks of one folder are understood together, by these rules, the first that fits:

1. The user says it: `classes` names values, `void` names the values that are not counted.
2. One value besides 0: the mask of one thing. Two or more, in a lossy format (JPEG): the brighter
   half is the thing.
3. Indexed (palette) images, grey or colour images whose values form areas, and grey images of few
   values below 64, or without 255 (65535 in 16 bits): each value is a class. 255 (65535 in 16
   bits; the colour 224, 224, 192) beside other values is void.
4. Grey images that reach 255 (65535) and whose other values form no areas: they are soft edges, and
   the brighter half is the thing.
5. All else is refused. So are folders in which 255 never stands beside the other values, unless
   those are 1: then both mean the thing.

A value forms areas where most of its pixels lie in blocks of 2 x 2 pixels of that value; the values
of a soft edge or of noise do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import MAX_PIXELS, open_image, scaled_values, upright

LOSSY = ("JPEG",)
VOID_COLOUR = 224 << 16 | 224 << 8 | 192  # of PASCAL VOC
AREAS = 0.6  # share of pixels in 2 x 2 blocks from which values form areas
LOW = 64  # a few values below it are classes, however thin
THIN = 0.2  # share below which one value forms no area
NAMED = 12  # values that a sentence lists
NO_CLASS = ("background", "bg", "unlabeled", "unlabelled", "none", "void", "ignore")
TRIMAP = {127, 128}
HINT = (
    "say what they mean, such as data.classes='{1: cup, 2: plate}' or data.void='[255]', "
    "or save masks of 0 and 255"
)


@dataclass
class Values:
    """The values of one or more mask files.

    `pixels` counts the pixels of each value, and `solid` those that lie in 2 x 2 blocks of it.
    `styles` are `bits`, `palette`, `grey`, `wide` (16 bits) and `colour`; `files` counts the files
    that have each value, and `beside` holds those that stand beside another one besides 0 in a
    file.
    """

    pixels: dict[int, int] = field(default_factory=dict)
    solid: dict[int, int] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)
    styles: set[str] = field(default_factory=set)
    beside: set[int] = field(default_factory=set)
    lossy: bool = False

    def add(self, values: np.ndarray, style: str, lossy: bool) -> None:
        """Adds the values `[h, w]` of one file."""
        same = np.zeros(values.shape, bool)
        block = (values[:-1] == values[1:])[:, :-1] & (values[:-1] == values[1:])[:, 1:]
        block &= values[:-1, :-1] == values[:-1, 1:]
        for rows in (slice(None, -1), slice(1, None)):
            for columns in (slice(None, -1), slice(1, None)):
                same[rows, columns] |= block
        counted = _counted(values)
        here = {value for value, _ in counted if value}
        self.beside |= here if len(here) > 1 else set()
        for value, count in counted:
            self.pixels[value] = self.pixels.get(value, 0) + count
            self.files[value] = self.files.get(value, 0) + 1
        for value, count in _counted(values[same]):
            self.solid[value] = self.solid.get(value, 0) + count
        self.styles.add(style)
        self.lossy |= lossy

    def areas(self, values: Iterable[int]) -> bool:
        """Whether values form areas: their pixels together, and all but a few for itself."""
        values = list(values)
        count = sum(self.pixels[v] for v in values)
        thin = [v for v in values if self.solid.get(v, 0) < THIN * self.pixels[v]]
        return sum(self.solid.get(v, 0) for v in values) >= AREAS * count and len(thin) <= NAMED


def _counted(values: np.ndarray) -> list[tuple[int, int]]:
    """(value, number of its pixels) for each value."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=1)
        return [(int(v), int(counts[v])) for v in np.flatnonzero(counts)]
    return [(int(v), int(n)) for v, n in zip(*np.unique(values, return_counts=True), strict=True)]


@dataclass(frozen=True)
class Meaning:
    """What values mean: the classes by value (empty: one thing), void values, and a threshold.

    `half` is the value from which a soft mask is the thing; None where it is not soft.
    """

    classes: Mapping[int, str] = field(default_factory=dict)
    void: frozenset[int] = frozenset()
    half: int | None = None

    def thing(self, values: np.ndarray, value: int | None = None) -> np.ndarray:
        """The mask of a class, bool `[h, w]`; None for all that is neither 0 nor void."""
        if value is not None:
            return values == value
        if self.half is not None:
            return values >= self.half
        return (values != 0) & ~self.ignored(values)

    def ignored(self, values: np.ndarray) -> np.ndarray:
        """Where values are void, bool `[h, w]`."""
        return np.isin(values, list(self.void))


def mask_values(
    source: str | Path | bytes, pixels: int = MAX_PIXELS, name: str = "the mask"
) -> tuple[np.ndarray, str, bool]:
    """(values `[h, w]`, style, whether the format is lossy) of a mask file as it is stored.

    Colours become one number, red * 65536 + green * 256 + blue; images whose channels are equal are
    grey. Transparent pixels are 0, and where only the transparency differs, the rest is 255. Floats
    become 0..255. Raises `InputError` as `open_image` does.
    """
    with open_image(source, pixels, name) as picture:
        lossy, mode, palette = picture.format in LOSSY, picture.mode, picture.getpalette()
        picture = upright(picture)
        if mode == "P" and palette and not _is_ramp(palette):
            return np.array(picture), "palette", lossy
        if mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV"):
            picture = picture.convert("RGBA" if mode == "PA" else "RGB")
        values = np.array(picture)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255, "bits", lossy
    if values.dtype.kind == "f":
        whole = np.isfinite(values).all() and (values == np.round(values)).all()
        if not whole or not 1 < values.max(initial=0) < 2**31 or values.min() < 0:
            values = _float_values(values, name if isinstance(source, bytes) else str(source))
        return values.astype(np.int32), "grey", lossy
    if values.ndim == 2:
        return values, "wide" if values.dtype.itemsize > 1 else "grey", lossy
    return *_of_channels(values), lossy


def _is_ramp(palette: list[int]) -> bool:
    """Whether the colours of a palette are the grey of their index: then it is a grey image."""
    colours = np.array(palette[: len(palette) // 3 * 3]).reshape(-1, 3)
    return len(colours) > 16 and bool((colours == np.arange(len(colours))[:, None]).all())


def _float_values(values: np.ndarray, name: str) -> np.ndarray:
    try:
        return scaled_values(values)[0]
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _of_channels(values: np.ndarray) -> tuple[np.ndarray, str]:
    seen = np.ones(values.shape[:2], bool)
    if values.shape[2] in (2, 4):
        seen, values = values[..., -1] >= 128, values[..., :-1]
        if not seen.all() and not values[seen].any():
            return seen * np.uint8(255), "bits"
    colours = values.astype(np.int32)
    if (colours == colours[..., :1]).all():
        return colours[..., 0] * seen, "grey"
    return colour_code(colours) * seen, "colour"


def colour_code(colours: np.ndarray) -> np.ndarray:
    """One number for each colour `[h, w, 3]`: red * 65536 + green * 256 + blue, int32 `[h, w]`."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def understand(
    found: Values,
    place: str,
    classes: Mapping[int, str] | None = None,
    void: Iterable[int] | None = None,
) -> Meaning:
    """What the values of masks mean, by the rules of this module.

    Args:
        found: The values of all masks of a folder.
        place: What errors call them.
        classes: Names of values; None where nobody said.
        void: Values that are not counted; None where nobody said.

    Raises:
        InputError: No rule fits.
    """
    values = {v for v in found.pixels if v}
    void_given = frozenset(void or ())
    if classes:
        left = values - set(classes)
        return Meaning(dict(classes), frozenset(_void(found, left)) | void_given)
    values -= void_given
    if found.lossy:
        return _lossy(found, values, place)
    if len(values) <= 1 or found.styles == {"bits"}:
        return Meaning({}, void_given)
    tops = {65535} if max(values) > 255 else {255}
    alone = values & tops - found.beside
    if alone and found.styles != {"colour"}:
        # never void beside a class: some files say 1 where others say 255
        if values - tops <= {1}:
            return Meaning({}, void_given)
        raise InputError(
            f"{place}: {_listed(alone)} is the only value of some masks, and others hold "
            f"{_listed(values - alone)}; {HINT}"
        )
    if found.styles == {"colour"}:
        tops, inner = set(), values - {VOID_COLOUR}
    else:
        inner = values - tops
    # soft edges lie anywhere between 0 and the top, not near 0 alone
    few = len(inner) <= NAMED and (not values & tops or max(inner, default=0) < LOW)
    if found.styles == {"palette"} or few or found.areas(inner):
        marks = _void(found, values) if void is None else set()
        if inner - marks <= TRIMAP and marks:
            raise InputError(f"{place}: values {_listed(values)} may be a trimap; {HINT}")
        names = {v: _name(v, "colour" in found.styles) for v in sorted(values - marks)}
        return Meaning(names, frozenset(marks) | void_given)
    if values & tops:
        return Meaning({}, void_given, (max(tops) + 1) // 2)
    raise InputError(f"{place}: nobody says what values {_listed(values)} mean; {HINT}")


def _lossy(found: Values, values: set[int], place: str) -> Meaning:
    if "colour" in found.styles:
        raise InputError(
            f"{place}: a JPEG changes the colours that stand for classes; save it as PNG"
        )
    if values and max(values) < 128:
        raise InputError(
            f"{place}: the values reach only {max(values)}, and a JPEG changes values; save masks "
            "as PNG"
        )
    return Meaning({}, frozenset(), 128)


def _void(found: Values, values: set[int]) -> set[int]:
    """The values that mean void beside other classes, where nobody says."""
    if found.styles == {"colour"}:
        return values & {VOID_COLOUR}
    marks = {65535} if max(found.pixels) > 255 else {255}
    if "wide" in found.styles and max(values - {255, 65535}, default=0) < 255:
        marks = {255, 65535}
    return values & marks if values - marks or values != set(found.pixels) - {0} else set()


def _name(value: int, colour: bool) -> str:
    return f"colour #{value:06x}" if colour else f"class {value}"


def _listed(values: Iterable[int]) -> str:
    values = sorted(values)
    more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
    return ", ".join(map(str, values[:NAMED])) + more


def told(found: Values, meaning: Meaning, place: str) -> str:
    """A sentence about what was understood, with the pixels of each value."""
    if meaning.half is not None:
        return f"{place}: soft or lossy masks of one thing, from value {meaning.half} on"
    parts = []
    for value in sorted(found.pixels)[: NAMED + 1]:
        what = (
            "void, not counted"
            if value in meaning.void
            else "background"
            if not value
            else meaning.classes.get(value, "left out" if meaning.classes else "the thing")
        )
        parts.append(f"{value} {what} ({found.pixels[value]} px in {found.files[value]} files)")
    more = len(found.pixels) - len(parts)
    return f"{place}: values " + ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def named_values(tree: Any, place: str) -> dict[int, str]:
    """Names of values from `{"1": "cup"}`, `{"cup": 1}`, `{"#ff0000": "cup"}` or a list of names.

    The first name of a list is that of value 0. Raises `InputError` for anything else.
    """
    if isinstance(tree, list) and all(isinstance(name, str) for name in tree):
        return {value: name for value, name in enumerate(tree) if value}
    if not isinstance(tree, dict):
        raise InputError(
            f'{place} is a {type(tree).__name__}; expected {{"1": "cup", ...}} or a list of names'
        )
    found = {}
    for key, name in tree.items():
        pair = (name, key) if isinstance(name, int) and not isinstance(name, bool) else (key, name)
        value = _value(pair[0])
        if value is None or not isinstance(pair[1], str):
            raise InputError(f"{place}: {key!r}: {name!r} is no value with its name")
        if found.get(value, pair[1]) != pair[1]:
            raise InputError(f"{place}: {value} has two names, {found[value]!r} and {pair[1]!r}")
        found[value] = pair[1]
    zero = found.pop(0, "background")
    if zero.strip("_").lower() not in NO_CLASS:
        raise InputError(f"{place}: 0 is the background, not {zero!r}; give classes values from 1")
    return found


def _value(key: Any) -> int | None:
    text = str(key).strip()
    if text.isascii() and text.isdigit():
        return int(text)
    if len(text) == 7 and text[0] == "#":
        try:
            return int(text[1:], 16)
        except ValueError:
            return None
    return None


def read_mask(
    source: str | Path | bytes, pixels: int = MAX_PIXELS, name: str = "the mask"
) -> np.ndarray:
    """The mask of one file, bool `[h, w]`: all pixels that are neither 0 nor void.

    Values are understood by the rules of this module. Where none fits, the brighter half is the
    mask. Raises `InputError` as `open_image` does.
    """
    return marked(source, pixels, name)[0]


def marked(
    source: str | Path | bytes,
    pixels: int = MAX_PIXELS,
    name: str = "the mask",
    void: Iterable[int] | None = None,
) -> tuple[np.ndarray, np.ndarray, str]:
    """The mask of one file and its void pixels, bool `[h, w]`, and a sentence if no rule fits.

    See `read_mask`. `void` are values that the user calls void.
    """
    values, style, lossy = mask_values(source, pixels, name)
    found = Values()
    found.add(values, style, lossy)
    try:
        meaning = understand(found, name if isinstance(source, bytes) else str(source), void=void)
    except InputError as error:
        brighter = values > (int(values.max(initial=0)) + 1) // 2
        return brighter, np.zeros(values.shape, bool), f"{error}; the brighter half is taken"
    return meaning.thing(values), meaning.ignored(values), ""
