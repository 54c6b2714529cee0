"""Evaluation on drawn scenes: one row per question, and a summary.

Rows are appended as they come. A killed run resumes and ends with the same summary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.datasets.scenes import SEVEN, Config, Scenes
from reasonseg.evaluation.benchmarks import pictures_of
from reasonseg.evaluation.intervals import mean_interval, ratio_interval, share_interval
from reasonseg.evaluation.metrics import Counts, count, refusals
from reasonseg.evaluation.runner import Answerer, run_evaluation
from reasonseg.segmenters.base import SegmenterProtocol
from reasonseg.structures.answer import Answer
from reasonseg.structures.masks import to_rle
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

BASELINES = ("random_object", "text_only", "true_object")


def evaluate_scenes(
    segmenter: SegmenterProtocol | None,
    *,
    split: str = "test",
    limit: int = 2400,
    seed: int = 0,
    levels: Sequence[str] = (*SEVEN, "novel"),
    sprites: str = "",
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a segmenter (or a predictions file) on drawn scenes; returns the summary.

    The summary has the form that `contracts` documents. `limit` is the number of questions in all,
    split evenly over `levels`. With `out`, `rows.jsonl` and `summary.json` are written there, and
    an interrupted run resumes. Raises `InputError` for unknown levels or splits, or malformed
    predictions.
    """
    data = _data(split, limit, seed, levels, sprites)
    config, levels = data.config, data.config.levels
    answer = Answerer(segmenter, predictions)

    def ask(_: str, part: list[int]) -> list[dict]:
        samples = [data[i] for i in part]
        rows = [_row(s, a) for s, a in zip(samples, answer(samples), strict=True)]
        for row, sample, i in zip(rows, samples, part, strict=True):
            row["random_object"] = _random_object(sample, data.scene(i))
        if predictions is None:
            _add_baselines(segmenter, samples, [data[(i + 1) % len(data)] for i in part], rows)
        return rows

    return run_evaluation(
        "scenes",
        {**asdict(config), "model": answer.name},
        {"": [data.id(i) for i in range(len(data))]},
        ask,
        lambda rows: summarise(rows, levels, with_model=predictions is None),
        out=out,
        progress=progress,
    )


def _data(split: str, limit: int, seed: int, levels: Sequence[str], sprites: str) -> Scenes:
    """The questions. A custom pack may have no properties, or too few things for some levels."""
    config = Config(split, limit, seed, levels=tuple(levels), sprites=sprites)
    data = Scenes(config)
    if not sprites:
        return data
    askable = tuple(level for level in levels if data.askable(level))
    if dropped := [level for level in levels if level not in askable]:
        listed = ", ".join(dropped)
        warnings.warn(f"{sprites} allows no questions of {listed}; left out", stacklevel=3)
    return Scenes(replace(config, levels=askable))


def _row(sample: Sample, answer: Answer) -> dict:
    counts = overlaps(answer.masks, sample.truth.masks)
    return {
        "id": sample.id,
        "level": sample.level,
        "question": sample.query.text,
        "truth": sample.truth.text,
        "answer": answer.text,
        "status": answer.status,
        "counts": [asdict(c) for c in counts],
        "objects": [
            {"segmentation": to_rle(mask), "score": float(s)}
            for mask, s in zip(answer.masks, answer.scores, strict=True)
        ],
    }


def overlaps(masks: np.ndarray, truths: np.ndarray) -> list[Counts]:
    """Counts of each true mask `[n, h, w]` against the predicted mask of the same index.

    A missing prediction counts as empty.
    """
    blank = np.zeros(truths.shape[1:], bool)
    return [count(masks[i] if i < len(masks) else blank, truth) for i, truth in enumerate(truths)]


def _random_object(sample: Sample, scene) -> float | None:
    """Mean IoU over all objects of the scene as the answer for each target: the score by chance."""
    if not len(sample.truth.masks):
        return None
    masks = [thing.mask for thing in scene.objects]
    return float(
        np.mean([[count(mask, truth).giou for mask in masks] for truth in sample.truth.masks])
    )


def _add_baselines(
    segmenter, samples: list[Sample], others: list[Sample], rows: list[dict]
) -> None:
    """Adds the baselines that need the model.

    `text_only`: the same words with another image. `true_object`: the decoder, with the box of each
    object as prompt.
    """
    shown = [
        replace(s.query, image=_resized(o.query.image, s.query.size))
        for s, o in zip(samples, others, strict=True)
    ]
    for sample, row, answer in zip(samples, rows, segmenter.batch(shown), strict=True):
        if len(sample.truth.masks):
            row["text_only"] = float(
                np.mean([c.giou for c in overlaps(answer.masks, sample.truth.masks)])
            )
    queries, owners = [], []
    for i, sample in enumerate(samples):
        for mask in sample.truth.masks:
            ys, xs = np.nonzero(mask)
            box = (float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1)
            queries.append(Query(sample.query.image, boxes=[box]))
            owners.append((i, mask))
    scores: dict[int, list[float]] = {}
    for (i, mask), answer in zip(owners, segmenter.batch(queries), strict=True):
        scores.setdefault(i, []).append(count(answer.masks[0], mask).giou)
    for i, values in scores.items():
        rows[i]["true_object"] = float(np.mean(values))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0])))


def summarise(rows: list[dict], levels: Iterable[str], with_model: bool = True) -> dict[str, Any]:
    """The summary of rows: scores per level, overall, and of the baselines, all 0..1.

    Each level has gIoU, cIoU, T-acc and n with a 95 % interval; `absent` has N-acc and T-acc.
    `strict_giou` counts every mask beyond the number of true masks as one more error; gIoU compares
    masks by index and ignores extra masks. The T-acc beside N-acc is over all questions that have a
    target, including `novel` ones; each level has its own.
    """
    present = [row for row in rows if row["counts"]]
    known = [row for row in present if row["level"] != "novel"]
    summary: dict[str, Any] = {"levels": {}}
    for level in levels:
        mine = [row for row in rows if row["level"] == level]
        if level == "absent":
            refused = [row["status"] == "absent" for row in mine]
            answers = refused + [row["status"] == "absent" for row in present]
            n_acc, t_acc = refusals([True] * len(mine) + [False] * len(present), answers)
            summary["levels"][level] = {
                "n_acc": n_acc,
                "t_acc": t_acc,
                "n": len(mine),
                "ci95": share_interval(refused, pictures_of(mine)),
            }
        else:
            summary["levels"][level] = _scores(mine)
    summary["overall"] = _scores(known)
    names = BASELINES if with_model else BASELINES[:1]
    summary["baselines"] = {
        name: {
            "giou": float(np.mean([row[name] for row in present])) if present else None,
            "n": len(present),
        }
        for name in names
    }
    return summary


def _scores(rows: list[dict]) -> dict[str, Any]:
    each = [float(np.mean([Counts(**c).giou for c in row["counts"]])) for row in rows]
    total = sum((Counts(**c) for row in rows for c in row["counts"]), Counts())
    # the share of true masks among all compared ones
    wanted = [len(row["counts"]) / max(len(row["counts"]), len(row["objects"])) for row in rows]
    return {
        "giou": float(np.mean(each)) if each else None,
        "strict_giou": float(np.mean(np.multiply(each, wanted))) if each else None,
        "ciou": total.ciou,
        "t_acc": float(np.mean([row["status"] != "absent" for row in rows])) if rows else None,
        "n": len(rows),
        "ci95": mean_interval(each, pictures_of(rows)),
        "ciou_ci95": ratio_interval(
            [sum(c["inter"] for c in row["counts"]) for row in rows],
            [sum(c["union"] for c in row["counts"]) for row in rows],
            pictures_of(rows),
        ),
    }
