"""A small set of drawn "photographs" in the layout of `datasets.photographs`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = {"1": "person", "2": "bicycle", "18": "dog", "47": "cup", "52": "banana", "3": "car"}
COLOURS = {1: (200, 40, 40), 2: (40, 40, 200), 18: (120, 80, 40), 47: (240, 240, 240),
           52: (240, 220, 40), 3: (40, 160, 60)}  # fmt: skip


def make_sets(root: Path, count: int = 12, seed: int = 0) -> Path:
    """`count` images of coloured rectangles, the last quarter of them for validation."""
    folder = root / "coco-mini"
    for name in ("images", "masks", "instances"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng, entries = np.random.default_rng(seed), []
    for k in range(count):
        image = rng.integers(90, 110, (96, 128, 3), np.uint8)
        labels, things = np.zeros((96, 128), np.uint8), np.zeros((96, 128), np.uint8)
        listed = []
        for i, category in enumerate(rng.permutation(list(COLOURS))[:3].tolist(), 1):
            x, y = 4 + 42 * (i - 1), int(rng.integers(4, 40))
            w, h = int(rng.integers(20, 36)), int(rng.integers(24, 50))
            image[y : y + h, x : x + w] = COLOURS[category]
            labels[y : y + h, x : x + w], things[y : y + h, x : x + w] = category, i
            listed.append({"id": i, "category": CATEGORIES[str(category)]})
        labels[:3, :3] = 255
        name = f"picture_{k:03d}"
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{name}.png")
        Image.fromarray(things).save(folder / "instances" / f"{name}.png")
        found = sorted({int(v) for v in np.unique(labels)} - {0, 255})
        entries.append(
            {
                "name": name, "image": f"images/{name}.png", "mask": f"masks/{name}.png",
                "instances_png": f"instances/{name}.png", "instances": listed,
                "split": "val" if k >= count * 3 // 4 else "train",
                "labels": {str(v): {"name": CATEGORIES[str(v)]} for v in found},
            }
        )  # fmt: skip
    content = {"categories": CATEGORIES, "images": entries}
    (folder / "index.json").write_text(json.dumps(content))
    return root
