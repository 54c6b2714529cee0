"""SAM 3 as a concept segmenter: a noun phrase, boxes of examples, or both, to all their instances.

Its tracker, which takes points and boxes, is the decoder `sam2` (`model_type` `sam3_tracker`).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reasonseg.errors import InputError
from reasonseg.structures.query import Box

MODEL_TYPES = ("sam3",)
# scores from which an instance is kept: transformers' own, and that of Meta's code
THRESHOLDS = {"transformers": 0.3, "meta": 0.5}
KEPT = 4  # images whose features are kept


@dataclass
class Instances:
    """All instances of a concept: masks bool `[n, h, w]`, scores `[n]` (0..1, presence included).

    `presence` (0..1): how sure the model is that the concept is in the image at all.
    """

    masks: np.ndarray
    scores: np.ndarray
    presence: float


def is_concept(place: Path) -> bool:
    """Whether a folder holds SAM 3's concept segmenter."""
    file = place / "config.json"
    if not file.is_file():
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("model_type") in MODEL_TYPES


def load(folder: Path, device: torch.device, dtype: torch.dtype | None) -> Concepts:
    """The concept segmenter of a folder. Raises `InputError` where it cannot be read."""
    from transformers import Sam3Model, Sam3Processor

    try:
        processor = Sam3Processor.from_pretrained(folder)
        model: Any = Sam3Model.from_pretrained(folder, dtype=dtype or "auto")
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"{folder} cannot be read as SAM 3: {reason}") from None
    return Concepts(model.to(device).eval(), processor)


class Concepts:
    """`Sam3Model` with its processor. An image is encoded once for all phrases.

    `threshold` is the score from which an instance is kept; see `THRESHOLDS`.
    """

    def __init__(self, model: Any, processor: Any, threshold: float = THRESHOLDS["transformers"]):
        self.model, self.processor, self.threshold = model, processor, threshold
        self.kept: OrderedDict[bytes, Any] = OrderedDict()
        self.looks = 0  # images that were encoded

    @torch.inference_mode()
    def find(self, image: np.ndarray, phrase: str = "", boxes: Sequence[Box] = ()) -> Instances:
        """All instances of a phrase, or of what is in the boxes.

        Args:
            image: uint8 RGB `[h, w, 3]`.
            phrase: A short noun phrase; empty with boxes.
            boxes: `(x0, y0, x1, y1)` in pixels, around examples in this image.

        Returns:
            The instances, the best first.

        Raises:
            InputError: Neither a phrase nor a box is given.
        """
        if not phrase.strip() and not boxes:
            raise InputError("SAM 3 needs a phrase or a box of an example")
        size = (image.shape[0], image.shape[1])
        given: dict[str, Any] = {}
        if boxes:
            given["input_boxes"] = [[list(map(float, box)) for box in boxes]]
            given["input_boxes_labels"] = [[1] * len(boxes)]
        inputs = self.processor(
            text=phrase.strip() or "visual",
            original_sizes=[list(size)],
            return_tensors="pt",
            **given,
        )
        weight = next(self.model.parameters())
        moved = {
            k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype)
            for k, v in inputs.items()
            if isinstance(v, torch.Tensor) and k != "original_sizes"
        }
        out = self.model(vision_embeds=self._seen(image), **moved)
        found = self.processor.post_process_instance_segmentation(
            out, threshold=self.threshold, target_sizes=[size]
        )[0]
        scores = found["scores"].float().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        masks = found["masks"].bool().cpu().numpy().reshape(-1, *size)
        presence = float(out.presence_logits.float().sigmoid().max())
        return Instances(masks[order], scores[order], presence)

    def _seen(self, image: np.ndarray) -> Any:
        key = image.tobytes() + str(image.shape).encode()
        if key not in self.kept:
            self.looks += 1
            weight = next(self.model.parameters())
            pixels = self.processor(images=Image.fromarray(image), return_tensors="pt")
            pixels = pixels["pixel_values"].to(weight.device, weight.dtype)
            self.kept[key] = self.model.get_vision_features(pixel_values=pixels)
            if len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return self.kept[key]

    def forget(self) -> None:
        """Forgets what is kept of images."""
        self.kept.clear()
