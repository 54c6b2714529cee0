"""Coordinate frames: what the numbers that a model says are measured in.

Most models speak of the picture relative to its sides (0..1000); some of pixels, of the picture as
it is or as their processor resized it. The order of a box is `xyxy` or `yxyx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reasonseg.errors import InputError
from reasonseg.structures.query import Box

Order = Literal["xyxy", "yxyx"]


@dataclass(frozen=True)
class Seen:
    """A picture as a model saw it; sizes are (height, width) in pixels.

    `size` is that of the picture itself; `given` that of what was given to the model's processor,
    in which the picture, resized, covers `covered` at the top left (the rest is padding); `fed` is
    the size that the vision encoder saw of `given`, read back from its input, or None where that is
    not known.
    """

    size: tuple[int, int]
    given: tuple[int, int]
    covered: tuple[int, int]
    fed: tuple[int, int] | None = None


@dataclass(frozen=True)
class Frame:
    """What numbers are measured in.

    `top`: the number of the far side, such as 1000; 0: pixels, of what was `fed` or of what was
    `given`. `half`: numbers are bins, and stand for their middles (Florence-2).
    """

    name: str
    top: float = 0.0
    pixels: Literal["", "fed", "given"] = ""
    half: bool = False

    def point(self, x: float, y: float, seen: Seen) -> tuple[float, float]:
        """A point in pixels of the picture, not clamped.

        Raises `InputError` where the frame needs the size that was fed and it is not known.
        """
        height, width = seen.given
        if self.pixels == "fed":
            if seen.fed is None:
                raise InputError(
                    f"frame {self.name} needs the size that the vision encoder saw, which this "
                    "model does not tell; run `reasonseg probe`, or name another frame"
                )
            across, down = width / seen.fed[1], height / seen.fed[0]
        elif self.pixels == "given":
            across = down = 1.0
        else:
            across, down = width / self.top, height / self.top
        shift = 0.5 if self.half else 0.0
        across *= seen.size[1] / seen.covered[1]
        down *= seen.size[0] / seen.covered[0]
        return (x + shift) * across, (y + shift) * down


FRAMES = {
    frame.name: frame
    for frame in (
        Frame("unit", 1.0),
        Frame("percent", 100.0),
        Frame("thousand", 1000.0),
        Frame("999", 999.0),
        Frame("bins", 1000.0, half=True),
        Frame("1024", 1024.0),
        Frame("pixels", pixels="given"),
        Frame("resized", pixels="fed"),
        Frame("840", 840.0),
        Frame("768", 768.0),
    )
}


def frame_of(name: str, place: str = "frame") -> Frame:
    """A frame by its name. Raises `InputError` for another name."""
    if name not in FRAMES:
        raise InputError(f"{place} {name!r} is not one of {', '.join(FRAMES)}")
    return FRAMES[name]


def box_in_pixels(
    numbers: tuple[float, float, float, float], frame: Frame, order: Order, seen: Seen
) -> tuple[Box | None, set[str]]:
    """A box in pixels of the picture, and what was done to it.

    Corners are sorted (`sorted`) and moved into the picture (`clamped`). None where nothing of it
    lies in the picture.
    """
    a, b, c, d = numbers
    first, second = ((a, b), (c, d)) if order == "xyxy" else ((b, a), (d, c))
    (x0, y0), (x1, y1) = frame.point(*first, seen), frame.point(*second, seen)
    flags = {"sorted"} if x1 < x0 or y1 < y0 else set()
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    height, width = seen.size
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if max(x0 - inside[0], inside[2] - x1, y0 - inside[1], inside[3] - y1, key=abs) != 0:
        flags.add("clamped")
    if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
        return None, flags | {"outside"}
    if (inside[2] - inside[0]) * (inside[3] - inside[1]) > 0.99 * height * width:
        flags.add("whole picture")
    return inside, flags


def point_in_pixels(x: float, y: float, frame: Frame, seen: Seen) -> tuple[float, float] | None:
    """A point in pixels of the picture, moved inside where it is close; None far outside."""
    height, width = seen.size
    px, py = frame.point(x, y, seen)
    if not (-0.1 * width <= px <= 1.1 * width and -0.1 * height <= py <= 1.1 * height):
        return None
    return min(max(px, 0.0), width - 1.0), min(max(py, 0.0), height - 1.0)


def intersection_over_union(a: Box, b: Box) -> float:
    """IoU of two boxes, 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)
