"""Published benchmarks (ReasonSeg, RefCOCO family): teacher-forced and generated scores.

Teacher-forced (LISA's protocol): the model is given the true answer text (`<SEG>.` in the published
sets, "The disc <SEG>." in a folder of one's own). So a model that would refuse, or answer without a
mask, is not penalised. Generated: the model answers by itself. The union of all masks of its answer
is compared, and an answer without masks counts as an empty mask. Both scores are reported
separately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.evaluation.intervals import mean_interval, ratio_interval, share_interval
from reasonseg.evaluation.metrics import IGNORE, Counts, count, refusals
from reasonseg.evaluation.runner import Answerer, run_evaluation
from reasonseg.nn.cache import digest
from reasonseg.segmenters.base import SegmenterProtocol
from reasonseg.structures.answer import Answer
from reasonseg.structures.markers import FORCED
from reasonseg.structures.masks import to_rle
from reasonseg.structures.sample import Sample

WAYS = ("teacher_forced", "generated")


def evaluate_benchmark(
    segmenter: SegmenterProtocol | None,
    config: Any,
    *,
    name: str,
    limit: int | None = None,
    out: str | Path | None = None,
    predictions: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a segmenter (or a predictions file) on a data set; returns the summary.

    `config` builds the data set; the summary has the form that `contracts` documents. `limit` takes
    the first samples; `seed` is that of the bootstrap intervals. With `out`, `rows.jsonl` and
    `summary.json` are written there, and an interrupted run resumes. A sample that cannot be read
    becomes a row with its error; it is counted, and tried again by the next run. Raises
    `InputError` for a missing data set or malformed predictions.
    """
    data = config.build()
    answer = Answerer(segmenter, predictions, data)
    total = len(data) if limit is None else min(limit, len(data))

    def ask(_: str, part: list[int]) -> list[dict]:
        samples, rows = _read(data, part)
        answers = {"generated": answer(samples)}
        forced = segmenter is not None and segmenter.capabilities.forced
        if segmenter is not None and forced and predictions is None:
            texts = [FORCED if s.truth.status == "absent" else s.truth.text for s in samples]
            answers = {
                "teacher_forced": segmenter.forced([s.query for s in samples], texts),
                **answers,
            }
        return rows + [
            row(s, {way: a[i] for way, a in answers.items()}) for i, s in enumerate(samples)
        ]

    summary = run_evaluation(
        name,
        {"name": name, **asdict(config), "limit": limit, "model": answer.name},
        {"": [data.id(i) for i in range(total)]},
        ask,
        lambda rows: summarise(rows, seed),
        out=out,
        whole=False,
        progress=progress,
    )
    remarks = [remark.text for remark in getattr(data, "remarks", ())]
    return {**summary, "remarks": remarks} if remarks else summary


def _read(data, indices: list[int]) -> tuple[list[Sample], list[dict]]:
    """The samples that can be read, and a row with its error for each that cannot."""
    samples, errors = [], []
    for i in indices:
        try:
            samples.append(data[i])
        except InputError as error:
            errors.append({"id": data.id(i), "error": str(error)})
    return samples, errors


def row(sample: Sample, answers: dict[str, Answer]) -> dict:
    """The stored row of one sample: counts per way of answering, the generated text and masks."""
    target = union(sample.truth.masks, sample.query.size).astype(np.uint8)
    if sample.ignored is not None:
        target[sample.ignored] = IGNORE
    made = answers["generated"]
    counts = {
        way: asdict(count(union(a.masks, sample.query.size), target)) for way, a in answers.items()
    }
    objects = [
        {"segmentation": to_rle(mask), "score": float(score)}
        for mask, score in zip(made.masks, made.scores, strict=True)
    ]
    spent = {k: made.meta[k] for k in ("calls", "tokens") if k in made.meta}
    if "calls" in spent:
        spent["failed_calls"] = len(made.meta.get("errors", ()))
    return {
        "id": sample.id,
        "level": sample.level,
        **spent,
        "picture": digest(sample.query.image).hex(),
        "question": sample.query.text,
        "absent": sample.truth.status == "absent",
        "answer": made.text,
        "status": made.status,
        "refused": not made.masks.any(),
        "counts": counts,
        "objects": objects,
    }


def union(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The union of all masks `[n, h, w]`, bool `[h, w]`; empty where there are none."""
    return np.asarray(masks.any(0)) if len(masks) else np.zeros(size, bool)


def summarise(rows: list[dict], seed: int = 0) -> dict[str, Any]:
    """The summary of rows, scores 0..1.

    It has gIoU, cIoU, their 95 % intervals (`ci95`, `ciou_ci95`) and n for each way of answering,
    in all and for short and long questions; refusals (N-acc, T-acc) with theirs; and the number of
    errors.
    """
    good = [r for r in rows if "error" not in r]
    summary: dict[str, Any] = _ways(good, lambda r: True, seed)
    for level in ("short", "long"):
        if any(r["level"] == level for r in good):
            summary[level] = _ways(good, lambda r, level=level: r["level"] == level, seed)
    if any(r["absent"] for r in good):
        n_acc, t_acc = refusals([r["absent"] for r in good], [r["refused"] for r in good])
        summary["generated"] |= {"n_acc": n_acc, "t_acc": t_acc}
        for name, absent in (("n_acc", True), ("t_acc", False)):
            mine = [r for r in good if r["absent"] == absent]
            flags = [r["refused"] == absent for r in mine]
            summary["generated"][f"{name}_ci95"] = share_interval(flags, pictures_of(mine))
    for name in ("calls", "tokens"):  # of models that are asked several times
        if spent := [r[name] for r in good if name in r]:
            summary[f"{name}_per_question"] = float(np.mean(spent))
    if any("failed_calls" in r for r in good):
        summary["failed_calls"] = sum(r.get("failed_calls", 0) for r in good)
    summary["errors"] = len(rows) - len(good)
    return summary


def pictures_of(rows: list[dict]) -> list[Any]:
    """The image of each row; questions about one image share an interval's cluster."""
    return [row.get("picture") or row.get("id") or k for k, row in enumerate(rows)]


def _ways(rows: list[dict], chosen: Callable[[dict], bool], seed: int) -> dict[str, dict]:
    found = {}
    for way in WAYS:
        # sorted, so that sums have a fixed order
        mine = sorted((r for r in rows if chosen(r) and way in r["counts"]), key=lambda r: r["id"])
        if not mine:
            continue
        counts, pictures = [Counts(**r["counts"][way]) for r in mine], pictures_of(mine)
        total = sum(counts, Counts())
        found[way] = {
            "giou": total.giou,
            "ciou": total.ciou,
            "n": total.n,
            "ci95": mean_interval([c.giou for c in counts], pictures, seed),
            "ciou_ci95": ratio_interval(
                [c.inter for c in counts], [c.union for c in counts], pictures, seed
            ),
        }
    return found
