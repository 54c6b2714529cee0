"""Sprite packs: a folder of RGBA cut-outs, and an `index.json` that describes each of them.

The default pack is rendered from the colour-emoji font of the system. Any folder of the same format
works.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reasonseg.datasets.synthetic.knowledge import Knowledge
from reasonseg.errors import InputError
from reasonseg.runtime import cache_folder
from reasonseg.structures.images import open_image

FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
)
FONT_SIZE = 109  # the only size at which the font has bitmaps (136 x 128)

# Hue in degrees of each colour word. A shift of hue cannot give "brown", "black" ...
HUES = {
    "red": 0.0,
    "orange": 30.0,
    "yellow": 55.0,
    "green": 120.0,
    "blue": 220.0,
    "purple": 275.0,
    "pink": 325.0,
}


@dataclass(eq=False)
class Sprite:
    """One cut-out of an object. `image` is uint8 RGBA `[h, w, 4]`, cropped to its opaque part.

    `hue` is its main hue in degrees, or None where it has none; only sprites with a main hue can
    get another named colour.
    """

    name: str
    category: str
    image: np.ndarray
    properties: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    hue: float | None = None
    _tinted: dict[str, Image.Image] = field(default_factory=dict, repr=False)

    def tinted(self, color: str | None, degrees: float = 0.0) -> Image.Image:
        """The cut-out with its main hue shifted to `color` (a key of `HUES`).

        For None, its hues are shifted by `degrees`. The result is cached.
        """
        key = color or str(degrees)
        if key not in self._tinted:
            turn = degrees if color is None or self.hue is None else HUES[color] - self.hue
            self._tinted[key] = Image.fromarray(turn_hue(self.image, turn) if turn else self.image)
        return self._tinted[key]


def turn_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """The image, uint8 RGBA `[h, w, 4]`, with every hue shifted by `degrees`.

    Value, saturation and alpha stay.
    """
    hsv = np.array(Image.fromarray(image[..., :3]).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees * 256 / 360)) % 256
    rgb = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    return np.dstack([rgb, image[..., 3]])


def main_hue(image: np.ndarray) -> float | None:
    """The main hue in degrees (0..360) of a cut-out `[h, w, 4]`, or None where it has none.

    A main hue means that at least 45 % of the opaque pixels are saturated, and that their hues
    agree (mean resultant length >= 0.85).
    """
    opaque = image[..., 3] > 127
    if not opaque.any():
        return None
    hue, saturation, value = (
        np.array(Image.fromarray(image[..., :3]).convert("HSV"))[opaque].astype(float).T
    )
    vivid = (saturation > 90) & (value > 90)
    if vivid.mean() < 0.45:
        return None
    mean = np.exp(2j * np.pi * hue[vivid] / 256).mean()
    return float(np.degrees(np.angle(mean)) % 360) if abs(mean) >= 0.85 else None


def color_of(hue: float) -> str:
    """The colour word nearest to a hue in degrees."""
    return min(HUES, key=lambda word: abs((hue - HUES[word] + 180) % 360 - 180))


def emoji_font() -> Path:
    """The path of the colour-emoji font.

    The path in the environment variable `REASONSEG_EMOJI_FONT` is tried first. Raises `InputError`,
    naming the package to install, where there is no font.
    """
    for place in filter(None, (os.environ.get("REASONSEG_EMOJI_FONT"), *FONT_PLACES)):
        if Path(place).is_file():
            return Path(place)
    raise InputError(
        "no colour-emoji font found: install Debian's fonts-noto-color-emoji, "
        "or pass --sprites DIR with your own sprite pack"
    )


def render_pack(out: Path, knowledge: Knowledge | None = None, font: Path | None = None) -> int:
    """Renders every object of the knowledge file into the folder `out`; returns their number.

    The pack is written to a temporary folder, which is then renamed. Raises `InputError` where
    `out` already holds a pack, or where the font is missing or lacks an emoji.
    """
    knowledge = knowledge or Knowledge.load()
    glyphs = ImageFont.truetype(str(font or emoji_font()), FONT_SIZE)
    out = Path(out)
    if (out / "index.json").exists():
        raise InputError(f"{out} already holds a sprite pack; remove it or choose another folder")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.mkdir(parents=True, exist_ok=True)
    index = []
    for name, thing in knowledge.things.items():
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((8, 8), thing.emoji, font=glyphs, embedded_color=True)
        if canvas.getbbox() is None:
            raise InputError(f"the font has no image for {thing.emoji!r} ({name})")
        cutout = canvas.crop(canvas.getbbox())
        hue = main_hue(np.array(cutout))
        file = f"{name.replace(' ', '-')}.png"
        cutout.save(aside / file)
        index.append(
            {
                "file": file,
                "name": name,
                "category": thing.category,
                "properties": list(thing.properties),
                "synonyms": list(thing.synonyms),
                "colors": [] if hue is None else [color_of(hue)],
            }
        )
    (aside / "index.json").write_text(
        json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    if out.exists():
        out.rmdir()  # an empty folder may be there
    aside.rename(out)
    return len(index)


def load_pack(folder: str | Path) -> list[Sprite]:
    """The sprites of a pack. Raises `InputError` naming the file and field that is wrong."""
    folder = Path(folder)
    index_file = folder / "index.json"
    if not index_file.is_file():
        raise InputError(f"{folder} is no sprite pack: it has no index.json")
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{index_file} is not valid JSON: {error}") from None
    if not isinstance(index, list) or not index:
        raise InputError(f"{index_file} must be a non-empty list of sprites")
    return [
        _read_sprite(folder, entry, f"{index_file}, entry {i}") for i, entry in enumerate(index)
    ]


def _read_sprite(folder: Path, entry: dict, place: str) -> Sprite:
    for key in ("file", "name", "category"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str) or not entry[key]:
            raise InputError(f"{place}: {key!r} must be a non-empty string")
    path = (folder / entry["file"]).resolve()
    if folder.resolve() not in path.parents:
        raise InputError(f"{place}: 'file' {entry['file']!r} lies outside the pack")
    try:
        with open_image(path) as opened:
            picture = opened.convert("RGBA")
    except InputError as error:
        raise InputError(f"{place}: cannot read {path.name}: {error}") from None
    opaque = np.asarray(picture.getchannel("A")) > 127
    bounds = Image.fromarray(opaque).getbbox()
    if bounds is None:
        raise InputError(f"{place}: {path.name} has no opaque pixel")
    image = np.array(picture.crop(bounds))
    hue = main_hue(image)
    colors = tuple(entry.get("colors") or (() if hue is None else (color_of(hue),)))
    return Sprite(
        entry["name"],
        entry["category"],
        image,
        properties=tuple(entry.get("properties") or ()),
        synonyms=tuple(entry.get("synonyms") or ()),
        colors=colors,
        hue=hue,
    )


def default_pack(knowledge: Knowledge | None = None) -> list[Sprite]:
    """The sprites of the emoji pack, rendered once into the user's cache folder."""
    knowledge = knowledge or Knowledge.load()
    folder = cache_folder() / f"sprites-{knowledge.fingerprint}"
    if not (folder / "index.json").is_file():
        render_pack(folder, knowledge)
    return load_pack(folder)
