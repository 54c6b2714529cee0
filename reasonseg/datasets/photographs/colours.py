"""Names of the colours of things in photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink",
           "brown")  # fmt: skip
HUES = ((12, "red"), (28, "orange"), (47, "yellow"), (115, "green"), (180, "blue"),
        (205, "purple"), (240, "pink"), (256, "red"))  # fmt: skip
DARK, PALE, DULL = 60, 185, 55  # values 0..255: black below, white above, grey below


def shares_of(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The shares (0..1) of the pixels under a mask that have each colour, by its name.

    `image` is uint8 `[h, w, 3]`, `mask` bool `[h, w]`. Nothing for a mask without pixels.
    """
    pixels = image[mask]
    if not len(pixels):
        return {}
    if len(pixels) > 2000:
        pixels = pixels[:: len(pixels) // 1000]
    hsv = np.asarray(Image.fromarray(pixels[None]).convert("HSV"))[0].astype(int)
    hue, saturation, value = hsv.T
    names = np.full(len(hsv), "red   ")
    for limit, name in reversed(HUES):
        names[hue < limit] = name
    warm = ((names == "orange") | (names == "yellow") | (names == "red")) & (hue < 40)
    names[warm & (value < 150)] = "brown"
    dull = saturation < DULL
    names[dull] = "grey"
    names[dull & (value > PALE)] = "white"
    names[value < DARK] = "black"
    found, counts = np.unique(np.char.strip(names), return_counts=True)
    return {str(n): float(c) / len(hsv) for n, c in zip(found, counts, strict=True)}
