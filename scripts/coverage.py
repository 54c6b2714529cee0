"""How often the 95 % intervals hold the true value, on populations where it is known.

    python -m scripts.coverage [--draws 2000]

Questions come in images (clusters), whose things are harder or easier and smaller or larger
together; IoUs are near 0 or near 0.9, as those of models are; areas spread from 0.05 % to 60 % of
the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from reasonseg.evaluation.intervals import (
    class_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)


def population(rng: np.random.Generator, images: int = 20_000) -> dict[str, np.ndarray]:
    """Questions of many images: their image, IoU, intersection, union, and whether refused."""
    each = rng.integers(1, 6, images)
    image = np.repeat(np.arange(images), each)
    hard = rng.normal(0, 1, images)[image]
    found = rng.random(len(image)) < 1 / (1 + np.exp(-(0.8 + hard)))
    iou = np.where(found, rng.beta(12, 2, len(image)), rng.beta(0.3, 4, len(image)))
    share = np.exp(rng.normal(-3, 1, images))[image] * np.exp(rng.normal(0, 0.5, len(image)))
    union = 250_000 * np.clip(share, 5e-4, 0.6)
    refused = rng.random(len(image)) < 1 / (1 + np.exp(-(2.5 + 1.5 * hard)))
    return {"image": image, "iou": iou, "inter": iou * union, "union": union, "refused": refused}


def of_images(draw: Callable, images: int = 150) -> Callable[[np.random.Generator, dict], bool]:
    """Whether an interval of the questions of some images holds the value of all images."""

    def hit(rng: np.random.Generator, all_of: dict[str, np.ndarray]) -> bool:
        count = all_of["image"][-1] + 1
        starts = np.searchsorted(all_of["image"], np.arange(count + 1))
        chosen = rng.integers(count, size=images)
        rows = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in chosen])
        sizes = starts[chosen + 1] - starts[chosen]
        groups = np.repeat(np.arange(images), sizes).tolist()
        truth = draw(all_of, slice(None), None)[0]
        low, high = draw(all_of, rows, groups)[1]
        return low <= truth <= high

    return hit


def _giou(p: dict, rows, groups) -> tuple:
    v = p["iou"][rows]
    return v.mean(), groups and mean_interval(v.tolist(), groups)


def _ciou(p: dict, rows, groups) -> tuple:
    a, b = p["inter"][rows], p["union"][rows]
    return a.sum() / b.sum(), groups and ratio_interval(a.tolist(), b.tolist(), groups)


def _nacc(p: dict, rows, groups) -> tuple:
    v = p["refused"][rows]
    return v.mean(), groups and share_interval(v.tolist(), groups)


def miou(rng: np.random.Generator, all_of: dict[str, np.ndarray], per_class: int = 20) -> bool:
    """Whether the interval of an mIoU of 20 classes holds that of all their episodes."""
    classes = all_of["image"] % 20
    names, above, below, truths = [], [], [], []
    for k in range(20):
        mine = np.flatnonzero(classes == k)
        truths.append(all_of["inter"][mine].sum() / all_of["union"][mine].sum())
        rows = rng.choice(mine, per_class)
        names += [k] * per_class
        above += all_of["inter"][rows].tolist()
        below += all_of["union"][rows].tolist()
    low, high = class_interval(names, above, below) or (2.0, -1.0)
    return low <= np.mean(truths) <= high


SCORES: dict[str, Callable[[np.random.Generator, dict], bool]] = {
    "gIoU, 150 images": of_images(_giou),
    "cIoU, 150 images": of_images(_ciou),
    "N-acc, 150 images": of_images(_nacc),
    "mIoU, 20 episodes a class": miou,
    "mIoU, 5 episodes a class": lambda rng, all_of: miou(rng, all_of, 5),
}


def coverage(draws: int, seed: int = 0) -> dict[str, float]:
    """The share of draws, 0..1, whose interval holds the true value, for each score."""
    all_of = population(np.random.default_rng(seed))
    return {
        name: float(np.mean([hit(np.random.default_rng([seed, k]), all_of) for k in range(draws)]))
        for name, hit in SCORES.items()
    }


def main() -> None:
    """Prints the coverage of each interval."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=2000)
    for name, share in coverage(parser.parse_args().draws).items():
        print(f"{name:28} {100 * share:.1f} %")


if __name__ == "__main__":
    main()
