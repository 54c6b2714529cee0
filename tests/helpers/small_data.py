"""Small data sets in the published layouts, written for tests."""

import json
import pickle
from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def picture(number: int, size=(40, 56)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def reason_seg(root: Path) -> Path:
    """Two images of a split `val`: a phrase with an ignored corner, and a sentence in two
    wordings.
    """
    folder = root / "reason_seg" / "ReasonSeg" / "val"
    folder.mkdir(parents=True)
    square = {"label": "target", "points": [[5, 5], [25, 5], [25, 25], [5, 25]]}
    corner = {"label": "Ignore it", "points": [[40, 2], [50, 2], [50, 10], [40, 10]]}
    for number, (texts, sentence, shapes) in enumerate(
        [
            ([" the Lamp "], False, [square, corner]),
            (["What gives light?", "What can be switched on?"], True, [square]),
        ]
    ):
        Image.fromarray(picture(number)).save(folder / f"{number}.jpg")
        (folder / f"{number}.json").write_text(
            json.dumps({"text": texts, "is_sentence": sentence, "shapes": shapes}), encoding="utf-8"
        )
    return root


def refer(root: Path, name: str = "refcoco", by: str = "unc", stem: str = "refs") -> Path:
    """Two images and three references of a split `val`; in gRefCOCO the last has no target and
    the second has two.
    """
    pictures = root / "refer_seg" / "images" / "mscoco" / "images" / "train2014"
    pictures.mkdir(parents=True, exist_ok=True)
    folder = root / "refer_seg" / name
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in (7, 3):
        Image.fromarray(picture(number)).save(pictures / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 56})
        for k in (0, 1):
            polygon = [10.0 + 20 * k, 5, 22 + 20 * k, 5, 22 + 20 * k, 30, 10 + 20 * k, 30]
            annotations.append(
                {"id": 10 * number + k, "image_id": number, "segmentation": [polygon]}
            )
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations}), encoding="utf-8"
    )
    group = name == "grefcoco"

    def ref(number, image, ids, *words):
        sentences = [{"sent": w, "sent_id": 100 * number + i} for i, w in enumerate(words)]
        ids = ids if group else ids[0]
        return {
            "ref_id": number,
            "image_id": image,
            "ann_id": ids,
            "split": "val",
            "sentences": sentences,
        }

    refs = [
        ref(1, 7, [70], " Left Man ", "the man"),
        ref(2, 3, [30, 31], "both"),
        ref(3, 3, [-1] if group else [31], "dog"),
    ]
    with (folder / f"{stem}({by}).p").open("wb") as file:
        pickle.dump(refs, file)
    return root


def shapes_picture(number: int, size=(96, 128)) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A picture of one disc and one bar in the same grey on dark, with their masks."""
    rng = np.random.default_rng([5, number])
    height, width = size
    y, x = np.mgrid[:height, :width]
    left = bool(rng.integers(2))
    cx, cy = (32 if left else 96) + int(rng.integers(-6, 7)), int(rng.integers(36, 60))
    disc = (x - cx) ** 2 + (y - cy) ** 2 < int(rng.integers(16, 24)) ** 2
    bx, by = (96 if left else 32) + int(rng.integers(-6, 7)), int(rng.integers(36, 60))
    bar = (abs(x - bx) < 8) & (abs(y - by) < 28)
    image = np.full((*size, 3), 40, np.uint8) + rng.integers(0, 12, (*size, 3), dtype=np.uint8)
    image[disc] = (200, 190, 60)
    image[bar] = (60, 190, 200)
    return image, {"disc": disc, "bar": bar}


def pairs(root: Path, count: int = 12) -> Path:
    """`images/` and `masks/<label>/`."""
    for number in range(count):
        image, masks = shapes_picture(number)
        for name, values in {
            "images": image,
            **{f"masks/{k}": m.astype(np.uint8) * 255 for k, m in masks.items()},
        }.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / name / f"{number:03}.png")
    return root


def indexed(root: Path) -> Path:
    """`images/` and indexed `masks/`, with the names of the classes."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(4):
        image, masks = shapes_picture(number)
        Image.fromarray(image).save(root / "images" / f"{number}.jpg")
        Image.fromarray(masks["disc"] * np.uint8(1) + masks["bar"] * np.uint8(2)).save(
            root / "masks" / f"{number}.png"
        )
    (root / "labels.json").write_text('{"1": "disc", "2": "bar"}', encoding="utf-8")
    return root


def coco(root: Path) -> Path:
    """A COCO file and pictures, with run-length encodings."""
    from reasonseg.structures.masks import to_rle

    root.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(4):
        image, masks = shapes_picture(number)
        Image.fromarray(image).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        for category, label in enumerate(("disc", "bar")):
            annotations.append(
                {
                    "id": 2 * number + category,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": to_rle(masks[label]),
                }
            )
    categories = [{"id": 0, "name": "disc"}, {"id": 1, "name": "bar"}]
    (root / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
        encoding="utf-8",
    )
    return root


def lines(root: Path) -> Path:
    """`samples.jsonl` with masks as files and as run-length encodings."""
    from reasonseg.structures.masks import to_rle

    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(4):
        image, masks = shapes_picture(number)
        Image.fromarray(image).save(root / f"{number}.png")
        Image.fromarray(masks["disc"].astype(np.uint8) * 255).save(root / f"{number}-disc.png")
        rows.append(
            {
                "image": f"{number}.png",
                "text": "what rolls",
                "masks": [f"{number}-disc.png"],
                "labels": ["disc"],
            }
        )
        rows.append(
            {
                "image": f"{number}.png",
                "text": "what bars the way",
                "masks": [to_rle(masks["bar"])],
                "labels": ["bar"],
            }
        )
    (root / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


def labelme(root: Path) -> Path:
    """LabelMe files beside their pictures."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        image, masks = shapes_picture(number)
        Image.fromarray(image).save(root / f"{number}.jpg")
        shapes = []
        for label, mask in masks.items():
            ys, xs = np.nonzero(mask)
            box = [
                [xs.min(), ys.min()],
                [xs.max(), ys.min()],
                [xs.max(), ys.max()],
                [xs.min(), ys.max()],
            ]
            shapes.append(
                {
                    "label": label,
                    "points": [[int(v) for v in p] for p in box],
                    "shape_type": "polygon",
                }
            )
        (root / f"{number}.json").write_text(json.dumps({"shapes": shapes}), encoding="utf-8")
    return root


def _tree(root: Path):
    """The rows of a table as Hugging Face `datasets` keeps images."""
    import io

    def kept(values):
        file = io.BytesIO()
        Image.fromarray(values).save(file, format="PNG")
        return {"bytes": file.getvalue(), "path": None}

    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(4):
        image, masks = shapes_picture(number)
        rows += [
            {"image": kept(image), "mask": kept(m.astype(np.uint8) * 255), "label": k}
            for k, m in masks.items()
        ]
    return rows


def parquet(root: Path) -> Path:
    """A data set as the hub holds it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _tree(root / "data")
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / "train-00000-of-00001.parquet")
    return root


def arrow(root: Path) -> Path:
    """A data set as `save_to_disk` writes it."""
    import pyarrow as pa

    table = pa.Table.from_pylist(_tree(root))
    with (
        pa.OSFile(str(root / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    return root


def semantic(root: Path, name: str = "ade20k") -> Path:
    """Two pictures with maps of classes: 3 and 1 of ADE20K (sky, wall), or what the others call
    so.
    """
    from reasonseg.datasets.semantic import LAYOUTS

    maps, pictures = (root / place for place in LAYOUTS[name])
    for folder in (maps, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.fromarray(picture(number)).save(pictures / f"{number}.jpg")
        values = np.zeros((40, 56), np.uint8)
        values[5:30, 5:40], values[32:, :10] = 3, 1
        Image.fromarray(values).save(maps / f"{number}.png")
    if name == "mapillary":
        labels = [{"readable": n} for n in ("Bird", "Ground Animal", "Ambiguous", "Curb")]
        (root / "mapillary" / "config_v2.0.json").write_text(
            json.dumps({"labels": labels}), encoding="utf-8"
        )
    return root


def parts(root: Path, name: str = "paco_lvis") -> Path:
    """Three pictures, the last without annotations: a mug, its handle."""
    from reasonseg.datasets.parts import LAYOUTS

    file, folder = (root / place for place in LAYOUTS[name])
    for place in (file.parent, folder):
        place.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in (4, 9, 11):
        Image.fromarray(picture(number)).save(folder / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 56})
        for category in (1, 2) if number != 11 else ():
            box = [5.0 * category, 5, 5 * category + 12, 5, 5 * category + 12, 30, 5 * category, 30]
            one = {
                "id": 10 * number + category,
                "image_id": number,
                "category_id": category,
                "segmentation": [box],
            }
            annotations.append(one)
    categories = [{"id": 1, "name": "mug_(drinking)"}, {"id": 2, "name": "mug_(drinking):handle"}]
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
        encoding="utf-8",
    )
    return root


def vqa(root: Path) -> Path:
    """Two conversations, the first of two turns."""
    from reasonseg.datasets.vqa import FILE, PICTURES

    (root / PICTURES).mkdir(parents=True, exist_ok=True)
    (root / FILE).parent.mkdir(parents=True, exist_ok=True)
    turns = ["<image>\nWhat is it?", "A cup.", "Which colour?", "Red."]
    said = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(turns)]
    for number in range(2):
        Image.fromarray(picture(number)).save(root / PICTURES / f"{number}.jpg")
    entries = [
        {"id": str(n), "image": f"{n}.jpg", "conversations": said[: 4 - 2 * n]} for n in range(2)
    ]
    (root / FILE).write_text(json.dumps(entries), encoding="utf-8")
    return root


def indexed_table(root: Path) -> Path:
    """A table whose masks hold several classes each, without a column of words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = indexed(root / "files")
    pairs = [(folder / "images" / f"{n}.jpg", folder / "masks" / f"{n}.png") for n in range(4)]
    rows = [
        {"image": {"bytes": a.read_bytes()}, "mask": {"bytes": b.read_bytes()}} for a, b in pairs
    ]
    table = root / "table"
    table.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), table / "train.parquet")
    (table / "labels.json").write_text(
        (folder / "labels.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    return table


STEPS = 3


def config(folder: Path, root: str, **stage) -> str:
    """A run on a folder in which some questions ask in vain, so that parts of a batch hold
    different counts.
    """
    settings = {
        "objective": "language",
        "steps": STEPS,
        "batch": 8,
        "lr": 1e-3,
        "warmup": 1,
        "optimizer": "adamw",
        "train": [
            "segmenter.prompter.",
            "segmenter.decoder.model.mask_decoder.",
            "segmenter.backbone.model.model.language",
        ],
    }
    tree = {
        "start": "embedded",
        "data": {"kind": "folder", "root": root, "absent": 0.5},
        "stages": {"words": settings | stage},
        "bf16": False,
        "workers": 0,
        "log_every": 1,
        "save_every": STEPS,
        "out": str(folder / "out"),
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(folder / "run.yaml")
