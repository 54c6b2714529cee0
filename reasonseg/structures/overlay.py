"""Draws answers for people: coloured masks with names and scores (supervision does the
painting).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

MIN_SIDE = 480  # smaller pictures are enlarged so that names can be read


def enlargement(image: np.ndarray) -> int:
    """The whole factor by which an overlay is larger than its picture."""
    return max(1, -(-MIN_SIDE // max(image.shape[:2])))


def draw_overlay(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float],
    colors: Sequence[int] | None = None,
) -> Image.Image:
    """`image` with each mask of `[n, h, w]` in its own colour (number `colors[i]` of the palette,
    else i), named and scored.

    Small pictures come out enlarged by the factor `enlargement`.
    """
    with warnings.catch_warnings():  # it advises OpenCV; its own NumPy painting serves
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
