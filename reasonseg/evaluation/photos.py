"""Evaluation on annotated photographs: questions in words, boxes, clicks and examples.

Questions are made from masks and names (`datasets.photographs`), with wordings that training does
not have. Rows are appended as they come; a killed run resumes and ends with the same summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from reasonseg.datasets.photographs.records import Record, records
from reasonseg.datasets.photographs.views import View, plain_view
from reasonseg.datasets.photos import LEVELS, Config, Photos
from reasonseg.errors import InputError
from reasonseg.evaluation.benchmarks import pictures_of, union
from reasonseg.evaluation.intervals import mean_interval, share_interval
from reasonseg.evaluation.metrics import IGNORE, refusals
from reasonseg.evaluation.metrics import count as count_of
from reasonseg.evaluation.runner import Answerer, run_evaluation
from reasonseg.runtime import is_main_process
from reasonseg.segmenters.base import SegmenterProtocol
from reasonseg.segmenters.judging import deepest
from reasonseg.structures.answer import Answer
from reasonseg.structures.contact_sheet import contact_sheet
from reasonseg.structures.images import atomic_write
from reasonseg.structures.overlay import draw_overlay
from reasonseg.structures.query import Query, Reference

PLACED = ("box", "click", "example")
WORDED = LEVELS
OUTLINE = (255, 255, 0)  # of the truth on a sheet
SMALLEST = 0.01  # of the picture: things that are boxed, clicked or shown


@dataclass(frozen=True)
class Task:
    """One question of the evaluation, made when it is asked."""

    level: str
    record: int
    number: int
    id: str


class PhotoTasks:
    """All questions about the photographs of a split: `count` a level, at most."""

    def __init__(self, root: str, split: str, count: int, levels: Sequence[str], seed: int):
        self.records = records(root, split)
        self.train = records(root, "train")
        self.seed, self.size = seed, Config.size
        self._views: dict[int, View] = {}
        self.words: dict[str, Photos] = {}
        self.tasks: list[Task] = []
        for level in levels:
            self.tasks += self._listed(level, root, split, count)
        self.shown = self._by_name()

    def _listed(self, level: str, root: str, split: str, count: int) -> list[Task]:
        if level in WORDED:
            rounds = -(-count // len(self.records)) + 1
            data = Photos(Config(root, split, count, self.seed, levels=(level,), per_photo=rounds))
            self.words[level] = data
            return [Task(level, n, i, data.id(i)) for i, (n, _, _) in enumerate(data.found)]
        found = []
        for n, record in enumerate(self.records):
            for k in range(len(self._things(n))):
                found.append(Task(level, n, k, f"{record.id}/{level}-{k}"))
        order = np.random.default_rng([self.seed, 33]).permutation(len(found))
        return [found[int(i)] for i in order[:count]]

    def view(self, number: int) -> View:
        """A photograph of the split as a view; the last ones are kept."""
        if number not in self._views:
            if len(self._views) > 200:
                self._views.clear()
            self._views[number] = plain_view(self.records[number], self.size)
        return self._views[number]

    def _things(self, number: int) -> list[int]:
        """Which things of a photograph are large enough, as indices."""
        objects = self.view(number).objects
        return [
            i for i, o in enumerate(objects)
            if o.name and not o.stuff and o.mask.mean() > SMALLEST
        ]  # fmt: skip

    def _by_name(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.train:
            if record.set == "coco":
                for name in record.names:
                    found.setdefault(name, []).append(record)
        return found

    def ask(self, task: Task) -> tuple[Query, np.ndarray, np.ndarray, bool]:
        """(the query, its true mask `[h, w]`, ignored pixels, whether nothing is there)."""
        if task.level in WORDED:
            sample = self.words[task.level][task.number]
            size = sample.query.size
            void = sample.ignored if sample.ignored is not None else np.zeros(size, bool)
            return sample.query, union(sample.truth.masks, size), void, not len(sample.truth.masks)
        view = self.view(task.record)
        high, wide = view.content
        image, void = view.image[:high, :wide], view.void[:high, :wide]
        thing = view.objects[self._things(task.record)[task.number]]
        mask = thing.mask[:high, :wide]
        if task.level == "box":
            return Query(image, boxes=[_box(mask)]), mask, void, False
        if task.level == "click":
            x, y = deepest(mask)
            return Query(image, points=[(x, y, 1)]), mask, void, False
        reference = self._reference(thing.name, task)
        all_of = np.logical_or.reduce([o.mask for o in view.objects if o.name == thing.name])
        return Query(image, references=[reference]), all_of[:high, :wide], void, False

    def elsewhere(self, task: Task, query: Query) -> Query:
        """The same question about another photograph, in the size of the right one: what can be
        told without looking.
        """
        other = self.view((task.record + 1) % len(self.records))
        high, wide = other.content
        height, width = query.size
        picture = Image.fromarray(other.image[:high, :wide]).resize((width, height))
        return replace(query, image=np.asarray(picture))

    def _reference(self, name: str, task: Task) -> Reference:
        """An example of the same name out of the training photographs, unlabelled."""
        rng = np.random.default_rng([self.seed, 34, task.record, task.number])
        pool = self.shown.get(name, [])
        best: tuple[float, Reference] | None = None
        for k in rng.permutation(len(pool))[:6]:
            image = pool[int(k)].image()
            masks = [o.mask for o in pool[int(k)].objects()[0] if o.name == name]
            mask = np.logical_or.reduce(masks)
            if best is None or mask.mean() > best[0]:
                best = float(mask.mean()), Reference(image, mask=mask)
            if mask.mean() > 0.03:
                break
        if best is None:
            view = self.view(task.record)
            best = 1.0, Reference(view.image, mask=view.objects[0].mask)
        return best[1]


def evaluate_photos(
    segmenter: SegmenterProtocol | None,
    *,
    root: str,
    split: str = "val",
    limit: int = 150,
    levels: Sequence[str] = (*WORDED, *PLACED),
    seed: int = 0,
    elsewhere: bool = False,
    sheet: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a segmenter on annotated photographs; returns the summary.

    `limit` is the number of questions of each level. `elsewhere` shows another photograph than the
    one that is asked about, as a baseline. `sheet` draws so many answers, picked at random, into
    `sheet.png` in `out`. Levels that the model cannot be asked are left
    out and named in `left_out`. Raises `InputError` where there are no photographs.
    """
    if segmenter is None:
        raise InputError("eval photos needs a model")
    able = segmenter.capabilities
    can = {**dict.fromkeys(WORDED, able.words), "box": able.places, "click": able.places}
    can["example"] = able.references
    asked = [level for level in levels if can.get(level, True)]
    tasks = PhotoTasks(root, split, limit, asked, seed)
    answer = Answerer(segmenter, None)

    def ask(_: str, part: list[int]) -> list[dict]:
        chosen = [tasks.tasks[i] for i in part]
        made = [tasks.ask(task) for task in chosen]
        shown = [query for query, *_ in made]
        if elsewhere:
            shown = [tasks.elsewhere(t, query) for t, query in zip(chosen, shown, strict=True)]
        answers = segmenter.batch(shown)
        return [row_of(tasks, *made_of) for made_of in zip(chosen, made, answers, strict=True)]

    summary = run_evaluation(
        "photos",
        {"split": split, "limit": limit, "levels": asked, "seed": seed, "model": answer.name}
        | ({"elsewhere": True} if elsewhere else {}),
        {"": [task.id for task in tasks.tasks]},
        ask,
        lambda rows: summarise(rows, asked),
        out=out,
        progress=progress,
    )
    if sheet and out is not None and is_main_process():
        draw_sheet(segmenter, tasks, sheet, Path(out) / "sheet.png")
    return {**summary, "left_out": [level for level in levels if level not in asked]}


def row_of(
    tasks: PhotoTasks, task: Task, made: tuple[Query, np.ndarray, np.ndarray, bool], said: Answer
) -> dict:
    """The stored row of one question."""
    query, truth, void, absent = made
    target = truth.astype(np.uint8)
    target[void] = IGNORE
    counts = count_of(union(said.masks, query.size), target)
    row = {
        "id": task.id, "level": task.level, "picture": tasks.records[task.record].id,
        "question": query.text, "absent": absent, "answer": said.text,
        "status": said.status, "refused": not said.masks.any(), "counts": asdict(counts),
    }  # fmt: skip
    if task.level == "box":
        row["box_itself"] = count_of(_filled(query), target).giou
    return row


def draw_sheet(segmenter: SegmenterProtocol, tasks: PhotoTasks, count: int, file: Path) -> None:
    """A picture of `count` answers picked at random: the answer filled, the truth outlined."""
    order = np.random.default_rng([tasks.seed, 35]).permutation(len(tasks.tasks))[:count]
    cells = []
    for task in (tasks.tasks[int(i)] for i in order):
        query, truth, void, _ = tasks.ask(task)
        answer = segmenter.batch([query])[0]
        found = union(answer.masks, query.size)
        target = truth.astype(np.uint8)
        target[void] = IGNORE
        drawn = np.array(draw_overlay(query.image, answer.masks, answer.labels, answer.scores))
        drawn[truth & ~ndimage.binary_erosion(truth, iterations=2)] = OUTLINE
        asked = query.text or task.level
        caption = f"{asked}\n{answer.text or answer.status}\nIoU {count_of(found, target).giou:.2f}"
        cells.append((Image.fromarray(drawn), caption))
    with atomic_write(file) as aside:
        contact_sheet(cells, 6).save(aside, format="PNG")


def summarise(rows: list[dict], levels: Sequence[str]) -> dict[str, Any]:
    """gIoU (mean over questions) of each level with a 95 % interval, N-acc and T-acc."""
    found: dict[str, Any] = {"levels": {}}
    for level in levels:
        mine = [r for r in rows if r["level"] == level]
        if not mine:
            continue
        if level == "absent":
            flags = [r["refused"] for r in mine]
            interval = share_interval(flags, pictures_of(mine))
            found["levels"][level] = {
                "n_acc": float(np.mean(flags)), "n": len(mine), "ci95": interval
            }  # fmt: skip
            continue
        each = [r["counts"]["ious"] for r in mine]
        found["levels"][level] = {
            "giou": float(np.mean(each)),
            "ci95": mean_interval(each, pictures_of(mine)),
            "answered": float(np.mean([not r["refused"] for r in mine])),
            "n": len(mine),
        }
        if level == "box":
            found["levels"][level]["box_itself"] = float(np.mean([r["box_itself"] for r in mine]))
    worded = [r for r in rows if r["level"] in WORDED]
    n_acc, t_acc = refusals([r["absent"] for r in worded], [r["refused"] for r in worded])
    return {**found, "n_acc": n_acc, "t_acc": t_acc}


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1


def _filled(query: Query) -> np.ndarray:
    mask = np.zeros(query.size, bool)
    x0, y0, x1, y1 = (int(v) for v in query.boxes[0])
    mask[y0:y1, x0:x1] = True
    return mask
