"""Small folders in every layout, two images of 64 x 48 each, for `fuzz_readers`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonseg.structures import brush
from reasonseg.structures.masks import to_rle

HEIGHT, WIDTH = 48, 64
SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
FLAT = [v for point in SQUARE for v in point]
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[10:30, 10:30] = True


def _image(file: Path, values: np.ndarray | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shade = np.full((HEIGHT, WIDTH, 3), 90, np.uint8) if values is None else values
    Image.fromarray(shade).save(file)


def _json(file: Path, tree: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree), encoding="utf-8")


def coco(root: Path) -> None:
    """COCO: a polygon, a run-length encoding as text, and one as a list."""
    runs = [10 * HEIGHT + 10, *([20, 28] * 20)[:-1], 34 * HEIGHT + 18]
    segmentations = [[FLAT], to_rle(MASK), {"size": [HEIGHT, WIDTH], "counts": runs}]
    for name in "ab":
        _image(root / f"{name}.jpg")
    images = [
        {"id": k, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH}
        for k, n in enumerate("ab")
    ]
    annotations = [
        {"id": k, "image_id": k % 2, "category_id": k, "segmentation": s, "bbox": [10, 10, 20, 20]}
        for k, s in enumerate(segmentations)
    ]
    categories = [{"id": k, "name": f"thing {k}"} for k in range(3)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    _json(root / "annotations" / "instances_train.json", tree)


def labelme(root: Path) -> None:
    """LabelMe: a polygon, a rectangle, a circle, a painted mask; an image inside of the file."""
    _image(root / "a.jpg")
    _image(root / "m.png", MASK[10:30, 10:30].astype(np.uint8) * 255)
    painted = base64.b64encode((root / "m.png").read_bytes()).decode()
    (root / "m.png").unlink()
    shapes = [
        {"label": "cat", "points": SQUARE, "shape_type": "polygon"},
        {"label": "dog", "points": [[5, 5], [20, 20]], "shape_type": "rectangle"},
        {"label": "sun", "points": [[30, 20], [40, 20]], "shape_type": "circle"},
        {"label": "ink", "points": [[10, 10], [29, 29]], "shape_type": "mask", "mask": painted},
    ]
    tree = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    _json(root / "a.json", tree)
    inside = base64.b64encode((root / "a.jpg").read_bytes()).decode()
    _json(root / "b.json", {**tree, "imagePath": "b.jpg", "imageData": inside})


def pairs(root: Path) -> None:
    """Pairs with masks of ids, and names of the classes."""
    for k, name in enumerate("ab", 1):
        _image(root / "images" / f"{name}.jpg")
        _image(root / "masks" / f"{name}.png", MASK.astype(np.uint8) * k)
    _json(root / "labels.json", {"1": "cat", "2": "dog"})


def samples(root: Path) -> None:
    """`samples.jsonl`: a file, a run-length encoding, a polygon, and nothing."""
    _image(root / "a.jpg")
    _image(root / "m.png", MASK.astype(np.uint8) * 255)
    rows = [
        {"image": "a.jpg", "text": "the cat", "masks": masks, "labels": ["cat"] * len(masks)}
        for masks in (["m.png"], [to_rle(MASK)], [FLAT], [])
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (root / "samples.jsonl").write_text(text, encoding="utf-8")


def yolo(root: Path) -> None:
    """YOLO-seg."""
    for name in "ab":
        _image(root / "train" / "images" / f"{name}.jpg")
    line = " ".join(["0", *(f"{v / (WIDTH, HEIGHT)[k % 2]:.6f}" for k, v in enumerate(FLAT))])
    (root / "train" / "labels").mkdir()
    for name in "ab":
        (root / "train" / "labels" / f"{name}.txt").write_text(line + "\n", encoding="utf-8")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: train/images\n", encoding="utf-8")


def voc(root: Path) -> None:
    """PASCAL VOC."""
    for name in "ab":
        _image(root / "JPEGImages" / f"{name}.jpg")
        _image(root / "SegmentationClass" / f"{name}.png", MASK.astype(np.uint8) * 8)
    names = root / "ImageSets" / "Segmentation" / "train.txt"
    names.parent.mkdir(parents=True)
    names.write_text("a\n", encoding="utf-8")


def label_studio(root: Path) -> None:
    """Label Studio: an outline and a painted mask."""
    _image(root / "a.jpg")
    percent = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in SQUARE]
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    outline = {"points": percent, "polygonlabels": ["cat"]}
    painted = {"format": "rle", "rle": brush.encode(MASK), "brushlabels": ["dog"]}
    result = [
        {"type": "polygonlabels", "value": outline, **size},
        {"type": "brushlabels", "value": painted, **size},
    ]
    _json(root / "tasks.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": result}]}])


def named_masks(root: Path) -> None:
    """PNG masks that `labels.json` names."""
    _image(root / "a.jpg")
    _image(root / "a-0.png", MASK.astype(np.uint8) * 255)
    _json(root / "labels.json", {"a-0.png": {"image": "a.jpg", "label": "cat", "score": 1.0}})


def table(root: Path) -> None:
    """A parquet table with images, masks and texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _image(root / "a.jpg")
    _image(root / "m.png", MASK.astype(np.uint8) * 255)
    cells = {"image": (root / "a.jpg").read_bytes(), "mask": (root / "m.png").read_bytes()}
    pq.write_table(
        pa.table({k: [v] for k, v in {**cells, "text": "a cat"}.items()}), root / "t.parquet"
    )
    for name in ("a.jpg", "m.png"):
        (root / name).unlink()


LAYOUTS: dict[str, Callable[[Path], None]] = {
    layout.__name__: layout
    for layout in (coco, labelme, pairs, samples, yolo, voc, label_studio, named_masks, table)
}
