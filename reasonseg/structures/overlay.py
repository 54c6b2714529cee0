"""Draws answers: coloured masks with labels and scores, drawn with supervision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

MIN_SIDE = 480  # pixels; smaller images are enlarged so that labels are legible


def enlargement(image: np.ndarray) -> int:
    """The integer factor by which the overlay of an image `[h, w, 3]` is enlarged, 1 or more."""
    return max(1, -(-MIN_SIDE // max(image.shape[:2])))


def draw_overlay(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float] | np.ndarray,
    colors: Sequence[int] | None = None,
) -> Image.Image:
    """The image with every mask drawn in its own colour, with label and score.

    `image` is uint8 `[h, w, 3]`, `masks` bool `[n, h, w]`; `labels` and `scores` (0..1) have n
    entries. Mask i has colour `colors[i]` of the palette, or colour i where `colors` is None.
    Small images are enlarged by the factor `enlargement`.
    """
    with warnings.catch_warnings():  # it recommends OpenCV; its NumPy drawing is enough here
        warnings.simplefilter("ignore")
        import supervision as sv

    factor = enlargement(image)
    canvas = np.ascontiguousarray(image.repeat(factor, 0).repeat(factor, 1))
    if not len(masks):
        return Image.fromarray(canvas)
    masks = np.asarray(masks).repeat(factor, 1).repeat(factor, 2)
    things = sv.Detections(
        xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        class_id=np.arange(len(masks)) if colors is None else np.asarray(colors),
        confidence=np.array(scores),
    )
    names = [f"{label or 'mask'} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    lookup = sv.ColorLookup.CLASS
    canvas = sv.MaskAnnotator(opacity=0.55, color_lookup=lookup).annotate(canvas, things)
    canvas = sv.PolygonAnnotator(thickness=2, color_lookup=lookup).annotate(canvas, things)
    annotator = sv.LabelAnnotator(text_scale=0.5, text_padding=4, color_lookup=lookup)
    return Image.fromarray(annotator.annotate(canvas, things, labels=names))
