"""Small data sets in the published layouts, written for tests."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size=(40, 56)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def reason_seg(root: Path) -> Path:
    """Two images of a split `val`: a phrase with an ignored corner, and a sentence in two wordings."""
    folder = root / "reason_seg" / "ReasonSeg" / "val"
    folder.mkdir(parents=True)
    square = {"label": "target", "points": [[5, 5], [25, 5], [25, 25], [5, 25]]}
    corner = {"label": "Ignore it", "points": [[40, 2], [50, 2], [50, 10], [40, 10]]}
    for number, (texts, sentence, shapes) in enumerate(
        [([" the Lamp "], False, [square, corner]), (["What gives light?", "What can be switched on?"], True, [square])]
    ):
        Image.fromarray(picture(number)).save(folder / f"{number}.jpg")
        (folder / f"{number}.json").write_text(json.dumps({"text": texts, "is_sentence": sentence, "shapes": shapes}))
    return root


def refer(root: Path, name: str = "refcoco", by: str = "unc", stem: str = "refs") -> Path:
    """Two images and three references of a split `val`; in gRefCOCO the last has no target and the second has two."""
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
            annotations.append({"id": 10 * number + k, "image_id": number, "segmentation": [polygon]})
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    group = name == "grefcoco"

    def ref(number, image, ids, *words):
        sentences = [{"sent": w, "sent_id": 100 * number + i} for i, w in enumerate(words)]
        ids = ids if group else ids[0]
        return {"ref_id": number, "image_id": image, "ann_id": ids, "split": "val", "sentences": sentences}

    refs = [
        ref(1, 7, [70], " Left Man ", "the man"),
        ref(2, 3, [30, 31], "both"),
        ref(3, 3, [-1] if group else [31], "dog"),
    ]
    with (folder / f"{stem}({by}).p").open("wb") as file:
        pickle.dump(refs, file)
    return root
