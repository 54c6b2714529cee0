"""The loss in masks by 8-bit and 4-bit language models, on drawn test scenes.

compare_quantization.py [--model M] [--limit N] [--json FILE]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reasonseg import Answer, Sample, Segmenter
from reasonseg.datasets.scenes import Config
from reasonseg.evaluation.metrics import count

BATCH = 32


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks `[h, w]`, 0..1."""
    return count(a, b).giou


def compare(samples: list[Sample], full: list[Answer], small: list[Answer]) -> dict[str, float]:
    """Differences between the answers of the full model and those of a small one.

    They are the loss of gIoU over questions with a target, the share of questions with the same
    objects (both 0..1), and the number of masks that became empty.
    """
    drops, same, blank = [], [], 0
    for sample, a, b in zip(samples, full, small, strict=True):
        pairs = list(zip(a.masks, b.masks, strict=False))
        same.append(len(a.masks) == len(b.masks) and all(overlap(x, y) > 0.5 for x, y in pairs))
        blank += sum(bool(x.any() and not y.any()) for x, y in pairs)
        if len(sample.truth.masks):
            scores = [
                sum(overlap(m, t) for m, t in zip(answer.masks, sample.truth.masks, strict=False))
                / len(sample.truth.masks)
                for answer in (a, b)
            ]
            drops.append(scores[0] - scores[1])
    return {
        "giou_drop": float(np.mean(drops)),
        "same_object": float(np.mean(same)),
        "blank": blank,
        "n": len(samples),
    }


def answers(model: Segmenter, samples: list[Sample], name: str) -> list[Answer]:
    """The model's answers, with a progress bar."""
    starts = tqdm(range(0, len(samples), BATCH), desc=name)
    return [a for i in starts for a in model.batch([s.query for s in samples[i : i + BATCH]])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--limit", type=int, default=700)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = Config("test", options.limit, size=168).build()
    samples = [data[i] for i in range(len(data))]
    full = answers(Segmenter.from_pretrained(options.model), samples, "full")
    found = {}
    for kind in ("int8", "nf4"):
        small = answers(Segmenter.from_pretrained(options.model, quantization=kind), samples, kind)
        found[kind] = compare(samples, full, small)
        print(kind, {k: round(v, 4) for k, v in found[kind].items()})
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
