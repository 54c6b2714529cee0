"""The nouns: what is asked, what is answered, and what is true.

*image* uint8 RGB `[h, w, 3]` · *mask* bool `[h, w]` · *score* 0..1 · *size* `(height, width)` ·
*box* `(x0, y0, x1, y1)` pixels · *point* `(x, y, 1 or 0)` pixels, 1 on the thing and 0 off it.
Axis letters elsewhere: h w height and width, b batch, n masks, k tokens per mask, d width, t text length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import read_image, read_mask, written_aside

if TYPE_CHECKING:
    from PIL import Image
    from supervision import Detections

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]
Status = Literal["found", "absent", "no_seg"]

MAX_WORDS = 2000  # more than any model here can read; refused before it costs a forward pass


def _checked_image(image: Any, name: str) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"{name} must be uint8 RGB [h, w, 3], got {image.dtype} {list(image.shape)}; reasonseg.Query.open reads files"
        )
    return image


def _checked_mask(mask: Any, image: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2:
        raise InputError(
            f"{name} must be bool [h, w], got {mask.dtype} {list(mask.shape)}; compare it with a threshold"
        )
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"{name} is {mask.shape[0]}x{mask.shape[1]}, its image {image.shape[0]}x{image.shape[1]}; resize one"
        )
    return mask


def _checked_boxes(boxes: Sequence, image: np.ndarray, name: str) -> tuple[Box, ...]:
    height, width = image.shape[:2]
    checked = []
    for box in boxes:
        try:
            x0, y0, x1, y1 = (float(c) for c in box)
        except (TypeError, ValueError):
            raise InputError(f"{name}: a box is x0,y0,x1,y1 in pixels, got {box!r}") from None
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(f"{name}: box {box!r} does not lie in the {width}x{height} image with x0 < x1 and y0 < y1")
        checked.append((x0, y0, x1, y1))
    return tuple(checked)


def _checked_points(points: Sequence, image: np.ndarray, name: str) -> tuple[Point, ...]:
    height, width = image.shape[:2]
    checked = []
    for point in points:
        try:
            x, y, on = (*point, 1)[:3]
            x, y, on = float(x), float(y), int(on)
        except (TypeError, ValueError):
            raise InputError(f"{name}: a point is x,y or x,y,1 or x,y,0 in pixels, got {point!r}") from None
        if not (0 <= x < width and 0 <= y < height) or on not in (0, 1):
            raise InputError(f"{name}: point {point!r} must lie in the {width}x{height} image, its third number 1 or 0")
        checked.append((x, y, on))
    return tuple(checked)


@dataclass
class Reference:
    """An annotated image: what to look for, shown. One of `mask`, `boxes`, `points`, `scribble` marks it.

    `weight` is how much it counts beside others, `name` what answers call it. Raises `InputError` where shapes disagree or not
    exactly one annotation is given.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    boxes: Sequence[Box] = ()
    points: Sequence[Point] = ()
    scribble: np.ndarray | None = None
    label: str | None = None
    weight: float = 1.0
    name: str = ""

    def __post_init__(self):
        self.image = _checked_image(self.image, "Reference.image")
        if not self.weight > 0:
            raise InputError(f"Reference.weight must be above 0, got {self.weight!r}")
        given = [self.mask is not None, len(self.boxes) > 0, len(self.points) > 0, self.scribble is not None]
        if sum(given) != 1:
            raise InputError(f"Reference needs one of mask, boxes, points, scribble; got {sum(given)}")
        if self.mask is not None:
            self.mask = _checked_mask(self.mask, self.image, "Reference.mask")
        if self.scribble is not None:
            self.scribble = _checked_mask(self.scribble, self.image, "Reference.scribble")
        self.boxes = _checked_boxes(self.boxes, self.image, "Reference.boxes")
        self.points = _checked_points(self.points, self.image, "Reference.points")

    @classmethod
    def open(cls, image: str | Path, mask: str | Path, label: str | None = None) -> Reference:
        """Reads an image file and a mask file (anything not black is the thing)."""
        return cls(read_image(image), mask=read_mask(mask), label=label)


@dataclass
class Query:
    """A question about an image: words, examples, places, or any of them together.

    `history` holds earlier turns as (question, answer text). Raises `InputError` where a field is malformed or where
    nothing is asked.
    """

    image: np.ndarray
    text: str = ""
    references: Sequence[Reference] = ()
    points: Sequence[Point] = ()
    boxes: Sequence[Box] = ()
    previous: np.ndarray | None = None
    history: Sequence[tuple[str, str]] = ()

    def __post_init__(self):
        self.image = _checked_image(self.image, "Query.image")
        if not isinstance(self.text, str):
            raise InputError(f"Query.text must be a string, got {type(self.text).__name__}")
        if not (self.text.strip() or self.references or len(self.points) or len(self.boxes)):
            raise InputError("nothing is asked: give a text, a reference, a point or a box")
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise InputError("Query.text holds half a character (a lone surrogate); send valid Unicode") from None
        if (words := len(self.text.split())) > MAX_WORDS:
            raise InputError(f"the text has {words} words; at most {MAX_WORDS} are read")
        for reference in self.references:
            if not isinstance(reference, Reference):
                raise InputError(f"Query.references must hold Reference objects, got {type(reference).__name__}")
        self.points = _checked_points(self.points, self.image, "Query.points")
        self.boxes = _checked_boxes(self.boxes, self.image, "Query.boxes")
        if self.previous is not None:
            self.previous = _checked_mask(self.previous, self.image, "Query.previous")

    @classmethod
    def open(cls, path: str | Path, text: str = "", **fields) -> Query:
        """A query about an image file, as a person sees it (EXIF applied). Raises `InputError` if it cannot be read."""
        return cls(read_image(path), text, **fields)

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass
class Answer:
    """What was said and marked. `masks` bool `[n, h, w]`, `scores` `[n]` in 0..1, `labels` n strings.

    `status` is `found` (n >= 1), `absent` (the model said it is not in this image) or `no_seg` (it only talked).
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
                f"{len(self.masks)} masks, {len(self.scores)} scores and {len(self.labels)} labels; give one each"
            )
        if self.status not in ("found", "absent", "no_seg"):
            raise InputError(f"Answer.status must be found, absent or no_seg, got {self.status!r}")
        if (self.status == "found") != (len(self.masks) > 0):
            raise InputError(f"status {self.status!r} does not go with {len(self.masks)} masks")

    def to_dict(self) -> dict:
        """The JSON of `answer.json`: text, status, objects with label, score, box and COCO RLE, references, meta."""
        from reasonseg.structures.masks import box_of, to_rle

        objects = [
            {"label": label, "score": round(float(score), 6), "box": box_of(mask), "segmentation": to_rle(mask)}
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
        """The image with every mask in a colour of its own, named and scored. Needs `image`, which answers carry."""
        if self.image is None:
            raise InputError("this answer does not carry its image; set answer.image before drawing")
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
            raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
        paths = []
        pictures = {f"mask-{i}.png": Image.fromarray(mask.astype(np.uint8) * 255) for i, mask in enumerate(self.masks)}
        if self.image is not None:
            pictures["overlay.png"] = self.overlay()
        for old in folder.glob("mask-*.png"):
            if old.name not in pictures:
                old.unlink()
        for name, picture in pictures.items():
            with written_aside(folder / name) as aside:
                picture.save(aside, format="PNG")
            paths.append(folder / name)
        with written_aside(folder / "answer.json") as aside:
            aside.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return [*paths, folder / "answer.json"]

    def to_coco(self, image_id: int = 1, file_name: str = "") -> dict:
        """A COCO data set of this one image: `images`, `annotations` (with `score`), `categories`."""
        from reasonseg.structures.masks import to_rle

        names = sorted(set(self.labels))
        height, width = self.masks.shape[1:]
        annotations = []
        for i, (mask, score, label) in enumerate(zip(self.masks, self.scores, self.labels, strict=True), 1):
            ys, xs = np.nonzero(mask)
            x0, y0 = (int(xs.min()), int(ys.min())) if len(xs) else (0, 0)
            bbox = [x0, y0, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0] if len(xs) else [0, 0, 0, 0]
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


@dataclass
class Sample:
    """A question and its true answer; what data sets are made of. `ignored` bool `[h, w]`: pixels that no score counts."""

    query: Query
    truth: Answer
    id: str = ""
    level: str = ""  # a group that reports keep apart
    ignored: np.ndarray | None = None

    def __post_init__(self):
        if len(self.truth.masks) and self.truth.masks.shape[1:] != self.query.size:
            raise InputError(
                f"sample {self.id!r}: the masks are {list(self.truth.masks.shape[1:])}, "
                f"the image {list(self.query.size)}; resize one"
            )
