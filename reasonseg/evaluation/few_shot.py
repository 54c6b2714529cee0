"""Few-shot evaluation: mIoU over classes and FB-IoU, separately for seen and withheld classes.

Both are defined as in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.episodes import GROUPS, Config
from reasonseg.errors import InputError
from reasonseg.evaluation.benchmarks import union
from reasonseg.evaluation.intervals import Interval, class_interval
from reasonseg.evaluation.metrics import IGNORE, Counts, count, mean_iou
from reasonseg.evaluation.runner import Answerer, run_evaluation
from reasonseg.segmenters.base import SegmenterProtocol
from reasonseg.structures.answer import Answer
from reasonseg.structures.masks import to_rle
from reasonseg.structures.sample import Sample


def evaluate_episodes(
    segmenter: SegmenterProtocol | None,
    config: Config,
    *,
    groups: Sequence[str] = GROUPS,
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a segmenter (or a predictions file) on `config.count` episodes of each group.

    Returns the summary. With `out`, `rows.jsonl` and `summary.json` are written there, and an
    interrupted run resumes. Raises `InputError` where no group has an episode.
    """
    sets = {group: replace(config, group=group).build() for group in groups}
    sets = {group: data for group, data in sets.items() if len(data)}
    if not sets:
        raise InputError(f"{config.benchmark} has no episodes of {' or '.join(groups)}")
    answer = Answerer(segmenter, predictions)

    def ask(group: str, part: list[int]) -> list[dict]:
        samples = [sets[group][i] for i in part]
        return [_row(s, a) for s, a in zip(samples, answer(samples), strict=True)]

    return run_evaluation(
        "episodes",
        {**asdict(config), "groups": list(groups), "model": answer.name},
        {group: [data.id(i) for i in range(len(data))] for group, data in sets.items()},
        ask,
        summarise,
        out=out,
        unit="episode",
        progress=progress,
    )


def _row(sample: Sample, answer: Answer) -> dict:
    """The row of one episode. All masks of an answer are joined: a papers' mask is of a class."""
    found = union(answer.masks, sample.query.size)
    truth = sample.truth.masks[0].astype(np.uint8)
    if sample.ignored is not None:
        truth[sample.ignored] = IGNORE
    return {
        "id": sample.id,
        "group": sample.level,
        "class": sample.truth.labels[0],
        "status": answer.status,
        "counts": asdict(count(found, truth)),
        "objects": [{"segmentation": to_rle(mask)} for mask in answer.masks],
    }


def summarise(rows: list[dict]) -> dict[str, Any]:
    """mIoU, FB-IoU, n and a 95 % interval of the mIoU for each group; scores 0..1.

    A group without episodes is absent. The interval is None where a class has too few episodes.
    """
    summary = {}
    for group in GROUPS:
        mine = [row for row in rows if row["group"] == group]
        if mine:
            total = sum((Counts(**row["counts"]) for row in mine), Counts())
            miou, interval = class_means(
                [row["class"] for row in mine], [row["counts"] for row in mine]
            )
            summary[group] = {
                "miou": miou,
                "fb_iou": total.fb_iou,
                "n": len(mine),
                "ci95": interval,
            }
    return summary


def class_means(classes: Sequence[str], counts: Sequence[dict]) -> tuple[float, Interval | None]:
    """(mIoU, its 95 % interval): the mean over classes of summed intersection / summed union.

    Values are 0..1. `counts` has `inter` and `union` of each episode.
    """
    by_class: dict[object, Counts] = {}
    for name, row in zip(classes, counts, strict=True):
        one = Counts(inter=row["inter"], union=row["union"])
        by_class[name] = by_class.get(name, Counts()) + one
    inter, union = ([row[key] for row in counts] for key in ("inter", "union"))
    return mean_iou(by_class), class_interval(classes, inter, union)
