"""The answer of a model: text, masks, scores and labels.

An answer can be written to disk, or converted to COCO and to supervision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import atomic_write

if TYPE_CHECKING:
    from PIL import Image
    from supervision import Detections

Status = Literal["found", "absent", "no_seg", "unparseable"]


@dataclass
class Answer:
    """The answer to a query: text and n masks with their scores and labels.

    Raises `InputError` where shapes, counts or the status do not agree.

    Attributes:
        text: The answer as text, with its markers such as `<SEG>`.
        masks: bool `[n, h, w]`, in the size of the image. Other dtypes are converted.
        scores: float32 `[n]`, 0..1, one per mask.
        labels: n strings, one per mask.
        status: `found` (n >= 1), `absent` (the model answered that it is not in this image),
            `no_seg` (the model answered in words only) or `unparseable` (a model that says places
            said something that cannot be read). The last three have n = 0.
        references: The reference images that were used, with `name`, `label` and `weight`.
        meta: Further facts, such as the name of the model; JSON values.
        image: uint8 RGB `[h, w, 3]`, or None. `overlay` needs it.
        pictures: What an agent showed to its verifier, uint8 RGB by step; not written by `save`.
    """

    text: str
    masks: np.ndarray
    scores: np.ndarray
    labels: list[str]
    status: Status
    references: list[dict] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    image: np.ndarray | None = field(default=None, repr=False)
    pictures: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

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
        if self.status not in get_args(Status):
            known = ", ".join(get_args(Status))
            raise InputError(f"Answer.status must be one of {known}, got {self.status!r}")
        if (self.status == "found") != (len(self.masks) > 0):
            raise InputError(f"status {self.status!r} does not go with {len(self.masks)} masks")

    def to_dict(self) -> dict:
        """Converts the answer to plain JSON values, as in `answer.json`.

        Returns:
            A dict with `text`, `status`, `objects`, `references` and `meta`. Each object has
            `label`, `score` (0..1), `box` (`[x0, y0, x1, y1]` pixels, origin top left) and
            `segmentation` (COCO RLE).
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
        """Draws every mask in its own colour on the image, with label and score.

        Returns:
            An RGB image. Small images are enlarged by a whole factor so that labels are legible.

        Raises:
            InputError: `image` is None. Answers of a model carry their image.
        """
        if self.image is None:
            raise InputError(
                "this answer does not carry its image; set answer.image before drawing"
            )
        from reasonseg.structures.overlay import draw_overlay

        return draw_overlay(self.image, self.masks, self.labels, self.scores)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `overlay.png`, `mask-0.png` ... (0 and 255) and `answer.json`.

        Every file is written under a temporary name and then renamed. Surplus masks of an earlier
        answer in the folder are removed. `overlay.png` needs `image` and is left out without it.

        Args:
            folder: The folder to write to; it is made if it does not exist.

        Returns:
            The paths of the written files.

        Raises:
            InputError: The folder cannot be made.
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
            aside.write_text(
                json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        return [*paths, folder / "answer.json"]

    def to_coco(self, image_id: int = 1, file_name: str = "") -> dict:
        """Converts the answer to a COCO data set of one image.

        Args:
            image_id: The COCO id of the image.
            file_name: The COCO file name of the image.

        Returns:
            A dict with `images`, `annotations` and `categories`. An annotation has a COCO RLE, its
            area in pixels, a box `[x, y, width, height]` in pixels and its score (0..1). Categories
            are the labels in alphabetical order, with ids from 1.
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
        """Converts the answer to the `Detections` of the library supervision.

        Returns:
            Detections with boxes, masks, confidences, class ids (from 0, labels in alphabetical
            order) and `data["class_name"]`; empty where there is no mask.
        """
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
