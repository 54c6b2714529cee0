"""What is answered: text, masks, scores and labels, and how they are written to disk or handed
to other libraries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import atomic_write

if TYPE_CHECKING:
    from PIL import Image
    from supervision import Detections

Status = Literal["found", "absent", "no_seg"]


@dataclass
class Answer:
    """What was said and marked. `masks` bool `[n, h, w]`, `scores` `[n]` in 0..1, `labels` n
    strings.

    `status` is `found` (n >= 1), `absent` (the model said it is not in this image) or `no_seg` (it
    only talked).
    """

    text: str
    masks: np.ndarray
    scores: np.ndarray
    labels: list[str]
    status: Status
    references: list[dict] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    image: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self):
        self.masks = np.asarray(self.masks, bool)
        self.scores = np.asarray(self.scores, np.float32).reshape(-1)
        self.labels = list(self.labels)
        if self.masks.ndim != 3:
            raise InputError(f"Answer.masks must be [n, h, w], got {list(self.masks.shape)}")
        if not len(self.masks) == len(self.scores) == len(self.labels):
            raise InputError(
                f"{len(self.masks)} masks, {len(self.scores)} scores and {len(self.labels)} "
                "labels; give one each"
            )
        if self.status not in ("found", "absent", "no_seg"):
            raise InputError(f"Answer.status must be found, absent or no_seg, got {self.status!r}")
        if (self.status == "found") != (len(self.masks) > 0):
            raise InputError(f"status {self.status!r} does not go with {len(self.masks)} masks")

    def to_dict(self) -> dict:
        """The JSON of `answer.json`: text, status, objects with label, score, box and COCO RLE,
        references, meta.
        """
        from reasonseg.structures.masks import box_of, to_rle

        objects = [
            {
                "label": label,
                "score": round(float(score), 6),
                "box": box_of(mask),
                "segmentation": to_rle(mask),
            }
            for mask, score, label in zip(self.masks, self.scores, self.labels, strict=True)
        ]
        return {
            "text": self.text,
            "status": self.status,
            "objects": objects,
            "references": self.references,
            "meta": self.meta,
        }

    def overlay(self) -> Image.Image:
        """The image with every mask in a colour of its own, named and scored. Needs `image`,
        which answers carry.
        """
        if self.image is None:
            raise InputError(
                "this answer does not carry its image; set answer.image before drawing"
            )
        from reasonseg.structures.overlay import draw_overlay

        return draw_overlay(self.image, self.masks, self.labels, self.scores)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `overlay.png`, `mask-0.png` ... (0/255) and `answer.json`; returns their paths.

        Every file is written aside and renamed; masks of an earlier answer are removed.
        """
        from PIL import Image

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the folder {folder}: {error.strerror or error}"
            ) from None
        paths = []
        pictures = {
            f"mask-{i}.png": Image.fromarray(mask.astype(np.uint8) * 255)
            for i, mask in enumerate(self.masks)
        }
        if self.image is not None:
            pictures["overlay.png"] = self.overlay()
        for old in folder.glob("mask-*.png"):
            if old.name not in pictures:
                old.unlink()
        for name, picture in pictures.items():
            with atomic_write(folder / name) as aside:
                picture.save(aside, format="PNG")
            paths.append(folder / name)
        with atomic_write(folder / "answer.json") as aside:
            aside.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return [*paths, folder / "answer.json"]

    def to_coco(self, image_id: int = 1, file_name: str = "") -> dict:
        """A COCO data set of this one image: `images`, `annotations` (with `score`),
        `categories`.
        """
        from reasonseg.structures.masks import to_rle

        names = sorted(set(self.labels))
        height, width = self.masks.shape[1:]
        annotations = []
        for i, (mask, score, label) in enumerate(
            zip(self.masks, self.scores, self.labels, strict=True), 1
        ):
            ys, xs = np.nonzero(mask)
            x0, y0 = (int(xs.min()), int(ys.min())) if len(xs) else (0, 0)
            bbox = (
                [x0, y0, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0]
                if len(xs)
                else [0, 0, 0, 0]
            )
            annotations.append(
                {
                    "id": i,
                    "image_id": image_id,
                    "category_id": names.index(label) + 1,
                    "segmentation": to_rle(mask),
                    "area": int(mask.sum()),
                    "bbox": bbox,
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
        return {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        }

    def to_supervision(self) -> Detections:
        """`supervision.Detections` with masks, confidences, class ids and `data["class_name"]`."""
        import supervision as sv

        if not len(self.masks):
            return sv.Detections.empty()
        names = sorted(set(self.labels))
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(self.masks).astype(np.float32),
            mask=self.masks,
            confidence=self.scores,
            class_id=np.array([names.index(label) for label in self.labels]),
            data={"class_name": np.array(self.labels)},
        )
