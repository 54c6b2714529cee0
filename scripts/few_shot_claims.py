"""The benefit of examples, on drawn scenes with the embedded models, with 95 % intervals.

    python -m scripts.few_shot_claims [few-shot,composed,selection,ensembles]
        [--limit 1000] [--seggpt DIR] [--out out/claims.json]

Differences are paired: both sides have the same images. Finished groups are stored and not measured
again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from reasonseg import Query, Reference, Segmenter
from reasonseg.config.schema import Kind
from reasonseg.datasets.episodes import Config as Episodes
from reasonseg.datasets.scenes import Config as Scenes
from reasonseg.evaluation.few_shot import class_means
from reasonseg.evaluation.metrics import count
from reasonseg.prompters.examples import Config as Examples
from reasonseg.serving.reference_bank import marked_shares, similarity
from reasonseg.structures.images import atomic_write

GROUPS = ("few-shot", "composed", "selection", "ensembles")
BATCH = 16
POOL, FUSED = 16, 4  # references of a class to choose from; number of those used together
DRAWS = 1000


def main() -> None:
    """Measures the chosen groups and prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="?", default=",".join(GROUPS))
    parser.add_argument("--limit", type=int, default=1000, help="episodes of each measurement")
    parser.add_argument("--model", default=None)
    parser.add_argument("--seggpt", default="tiny-seggpt", metavar="M", help="for ensembles")
    parser.add_argument("--out", default="out/claims.json")
    parser.add_argument(
        "--docs",
        metavar="FILE",
        help="also write the tables to this file, after its mark <!-- claims -->",
    )
    options = parser.parse_args()
    out = Path(options.out)
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    models: dict = {}

    def model(which: str):
        if which not in models:
            models[which] = Segmenter.from_pretrained(
                options.model if which == "words" else options.seggpt
            )
        return models[which]

    measures = {
        "few-shot": few_shot,
        "composed": composed,
        "selection": selection,
        "ensembles": ensembles,
    }
    for group in options.groups.split(","):
        key = f"{group} ({options.limit})"
        if key not in results:
            results[key] = measures[group](model, options.limit)
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as aside:
                aside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        show(key, results[key])
    if options.docs:
        file, mark = Path(options.docs), "<!-- claims -->"
        text = (
            file.read_text(encoding="utf-8").split(mark)[0]
            + mark
            + "\n"
            + "".join(markdown(k, v) for k, v in results.items())
        )
        with atomic_write(file) as aside:
            aside.write_text(text, encoding="utf-8")


def markdown(group: str, results: dict) -> str:
    """The table of one group for the documentation."""
    rows = [
        f"| {name} | {told(name, row)} | {between(row['ci95'])} |\n"
        for name, row in results.items()
    ]
    return (
        f"\n**{group.replace(')', ' episodes)')}**\n\n| what | mIoU | 95 % interval "
        "|\n|---|---|---|\n" + "".join(rows)
    )


def told(name: str, row: dict) -> str:
    """A score, or a difference with its sign."""
    return f"{row['value']:+.3f}" if "gain" in name else f"{row['value']:.3f}"


def between(interval: list[float] | None) -> str:
    """An interval in words; where a class has too few episodes, a dash."""
    return "-" if interval is None else "{:.3f} to {:.3f}".format(*interval)


def answered(segmenter, queries: list[Query], name: str) -> list[np.ndarray]:
    """One mask `[h, w]` per query: the union of all masks of its answer."""
    masks = []
    for start in tqdm(range(0, len(queries), BATCH), desc=name, disable=not sys.stderr.isatty()):
        for answer in segmenter.batch(queries[start : start + BATCH]):
            masks.append(
                answer.masks.any(0) if len(answer.masks) else np.zeros(answer.masks.shape[1:], bool)
            )
    return masks


def overlaps(samples, masks) -> list[dict]:
    """Pixel counts of each sample's whole true mask."""
    found = (count(m, s.truth.masks.any(0)) for s, m in zip(samples, masks, strict=True))
    return [
        {"inter": c.inter, "union": c.union, "class": s.truth.labels[0]}
        for s, c in zip(samples, found, strict=True)
    ]


def miou(rows: list[dict]) -> dict:
    """mIoU over classes (0..1) with its interval."""
    value, interval = class_means([r["class"] for r in rows], rows)
    return {"value": value, "ci95": interval, "n": len(rows)}


def gain(rows: list[dict], over: list[dict], seed: int = 0) -> dict:
    """The difference of two mIoUs on the same episodes, with a paired bootstrap interval.

    Episodes are drawn within their classes.
    """
    names = sorted({r["class"] for r in rows})
    of = np.array([names.index(r["class"]) for r in rows])
    sides = [np.array([[r["inter"], r["union"]] for r in side], float) for side in (rows, over)]

    def score(side: np.ndarray, draw: np.ndarray) -> float:
        inter, union = (np.bincount(of[draw], side[draw, k], len(names)) for k in (0, 1))
        there = np.bincount(of[draw], minlength=len(names)) > 0
        return float((inter / np.maximum(union, 1))[there].mean())

    rng, every = np.random.default_rng(seed), np.arange(len(of))
    strata = [np.flatnonzero(of == k) for k in range(len(names))]  # classes are fixed
    draws = [np.concatenate([rng.choice(rows, len(rows)) for rows in strata]) for _ in range(DRAWS)]
    values = [score(sides[0], d) - score(sides[1], d) for d in draws]
    value = score(sides[0], every) - score(sides[1], every)
    return {
        "value": value,
        "ci95": [float(v) for v in np.percentile(values, [2.5, 97.5])],
        "n": len(rows),
    }


def episodes(limit: int, **fields) -> list:
    """Samples of drawn episodes."""
    data = Episodes(count=limit, **fields).build()
    return [data[i] for i in range(len(data))]


def few_shot(model, limit: int) -> dict:
    """One and five references, with the label and without, on withheld and seen classes."""
    results, rows = {}, {}
    for group in ("withheld", "seen"):
        for shots, prompt in ((1, "reference"), (5, "reference"), (1, "both"), (1, "label")):
            name = f"{group}, {prompt}, {shots} shot"
            samples = episodes(limit, group=group, shots=shots, prompt=prompt)
            rows[name] = overlaps(
                samples, answered(model("words"), [s.query for s in samples], name)
            )
            results[name] = miou(rows[name])
    for group in ("withheld", "seen"):
        one = rows[f"{group}, reference, 1 shot"]
        results[f"{group}: gain of five references over one"] = gain(
            rows[f"{group}, reference, 5 shot"], one
        )
        results[f"{group}: gain of the label beside a reference"] = gain(
            rows[f"{group}, both, 1 shot"], one
        )
    return results


def composed(model, limit: int) -> dict:
    """Words with an example ("one like this, but red"), against words alone and example alone."""
    results = {}
    for withheld in (False, True):
        data = Scenes("test", limit, levels=("alike",), shown=1, withheld=withheld).build()
        samples = [data[i] for i in range(limit)]
        group = "withheld" if withheld else "seen"
        parts = {
            "both": [s.query for s in samples],
            "words alone": [replace(s.query, references=[]) for s in samples],
            "example alone": [replace(s.query, text="") for s in samples],
        }
        rows = {
            name: overlaps(samples, answered(model("words"), queries, f"{group}, {name}"))
            for name, queries in parts.items()
        }
        scores = {name: miou(row) for name, row in rows.items()}
        results |= {f"{group}, {name}": score for name, score in scores.items()}
        better = max(("words alone", "example alone"), key=lambda name: scores[name]["value"])
        results[f"{group}: gain over {better}"] = gain(rows["both"], rows[better])
    return results


def selection(model, limit: int) -> dict:
    """One of `POOL` references, random or the most similar (prompt-SelF); then the nearest few.

    The nearest `FUSED` references are used together.
    """
    segmenter, rows = model("words"), {}
    data = Episodes(count=limit, shots=POOL, group="withheld").build()
    for i in tqdm(range(limit), desc="selection", disable=not sys.stderr.isatty()):
        sample = data[i]
        pool: list[Reference] = list(sample.query.references)
        picks = {"random": pool[:1], "random, four together": pool[:FUSED]}
        for by, ranked in nearest(segmenter, sample.query.image, pool).items():
            picks |= {by: ranked[:1], f"{by}, four together": ranked[:FUSED]}
        queries = [replace(sample.query, references=references) for references in picks.values()]
        for name, answer in zip(picks, segmenter.batch(queries), strict=True):
            rows.setdefault(name, []).extend(overlaps([sample], [answer.masks.any(0)]))
    results = {name: miou(row) for name, row in rows.items()}
    for name in ("pixel", "global", "thing"):
        results[f"gain of {name} selection over random"] = gain(rows[name], rows["random"])
        results[f"gain of four together over {name} selection alone"] = gain(
            rows[f"{name}, four together"], rows[name]
        )
    return results


@torch.inference_mode()
def nearest(segmenter, image: np.ndarray, pool: list[Reference]) -> dict[str, list[Reference]]:
    """The references sorted by similarity to the image, for each measure of similarity."""
    prompter = segmenter.references
    seen = prompter.placed(prompter.patch_encoder.encode([image, *(r.image for r in pool)]))
    shares = [marked_shares(prompter, r.mask, seen.shape[1]) for r in pool]
    picks = {}
    for by in ("pixel", "global", "thing"):
        values = [
            float(similarity(seen[0], patches, share, by))
            for patches, share in zip(seen[1:], shares, strict=True)
        ]
        picks[by] = [pool[k] for k in np.argsort(values)[::-1]]
    return picks


def ensembles(model, limit: int) -> dict:
    """A SegGPT with one and five references, each ensemble, and the eight arrangements."""
    base, results = model("seggpt"), {}
    one, five = episodes(limit, shots=1), episodes(limit, shots=5)
    first = overlaps(one, answered(base, [s.query for s in one], "one reference"))
    results["one reference"] = miou(first)
    ways = {
        f"five references, {e}": (Examples(e, 1, base.references.config.type), five)
        for e in ("feature", "spatial", "mean")
    }
    ways["one reference, eight arrangements"] = (
        Examples("feature", 8, base.references.config.type),
        one,
    )
    for name, (config, samples) in ways.items():
        segmenter = base.with_references(Kind("examples", config)).eval()
        rows = overlaps(samples, answered(segmenter, [s.query for s in samples], name))
        results |= {name: miou(rows), f"gain of {name}": gain(rows, first)}
    return results


def show(group: str, results: dict) -> None:
    """Prints the table of one group."""
    table = Table("what", "mIoU", "95 % interval", "episodes", title=group)
    for name, row in results.items():
        table.add_row(name, told(name, row), between(row["ci95"]), str(row["n"]))
    Console().print(table)


if __name__ == "__main__":
    main()
