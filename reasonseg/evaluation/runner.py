"""The loop of all evaluations, whose rows are stored so that runs resume; predictions files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reasonseg.config.schema import differences
from reasonseg.errors import InputError
from reasonseg.evaluation.predictions import answers_from, read_predictions
from reasonseg.runtime import (
    gather_rows,
    is_main_process,
    process_share,
    processes,
    wait_for_everyone,
)
from reasonseg.segmenters.base import SegmenterProtocol
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write
from reasonseg.structures.sample import Sample

BATCH = 16  # questions per batch


def run_evaluation(
    name: str,
    key: dict[str, Any],
    ids: Mapping[str, Sequence[str]],
    ask: Callable[[str, list[int]], list[dict]],
    summarise: Callable[[list[dict]], dict[str, Any]],
    *,
    out: str | Path | None = None,
    unit: str = "question",
    whole: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Answers every question once, stores one row each, and returns and writes the summary.

    `ids` are the names of the samples of each group. `ask(group, indices)` returns the rows of up
    to `BATCH` samples of one group. `key` identifies the evaluation: raises `InputError` where
    `out` holds rows of another one. A killed run resumes and ends with the same summary. With
    `whole`, an incomplete batch is computed again as a whole, so that every batch is the same as
    without the interruption. Rows with an `error` are always tried again.
    """
    known = {row["id"]: row for row in kept(out, json.loads(json.dumps(key))) if "error" not in row}
    rows, batches = [], []
    for group, names in ids.items():
        mine = [known[name] for name in names if name in known]
        mine = whole_batches(mine, list(names), BATCH) if whole else mine
        done = {row["id"] for row in mine}
        todo = [(group, i) for i, sample in enumerate(names) if sample not in done]
        batches += batched(todo, BATCH)
        rows += mine
    rewrite(out, rows)
    rows += collect(
        out,
        batches,
        lambda batch: ask(batch[0][0], [i for _, i in batch]),
        bar=f"eval {name}",
        unit=unit,
        had=len(rows),
        progress=progress,
    )
    rows = ordered(rows, [sample for names in ids.values() for sample in names])
    summary = summarise(rows)
    finish(out, rows, summary)
    return summary


class Answerer:
    """The source of answers: a segmenter, or a predictions file.

    `name` changes with the model's weights or the file's content. `data` is the data set, whose ids
    predictions in COCO's form need. Raises `InputError` where there is neither.
    """

    def __init__(
        self,
        segmenter: SegmenterProtocol | None,
        predictions: str | Path | None,
        data: Any = None,
    ):
        self.segmenter, self.given = segmenter, None
        if predictions is not None:
            self.given = read_predictions(predictions, data)
            self.name = (
                f"predictions-{hashlib.sha256(Path(predictions).read_bytes()).hexdigest()[:12]}"
            )
        elif segmenter is not None:
            self.name = segmenter.fingerprint
        else:
            raise InputError("nothing to score: give a model or a file of predictions")

    def __call__(self, samples: list[Sample]) -> list[Answer]:
        """Generated answers to samples, in their order."""
        if self.given is not None or self.segmenter is None:
            return answers_from(samples, self.given or {})
        return self.segmenter.batch([s.query for s in samples])


def kept(out: str | Path | None, key: dict) -> list[dict]:
    """Rows of an earlier run with the same settings.

    Raises `InputError` where the earlier run had others.
    """
    if out is None:
        return []
    out = Path(out)
    run = out / "run.json"
    earlier = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else None
    if earlier is not None and (other := differences(earlier, json.loads(json.dumps(key)))):
        raise InputError(
            f"{out} holds an evaluation with other settings ({'; '.join(other)}); choose another "
            "--out or remove it"
        )
    wait_for_everyone()  # until all processes have read run.json
    if is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(run) as aside:
            aside.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        # an incomplete last line is dropped
        rows = [
            row for file in _files(out) for row in _whole_lines(file.read_text(encoding="utf-8"))
        ]
        # after a kill during a rewrite, a row is in two files
        rewrite(out, list({row["id"]: row for row in rows}.values()))
    wait_for_everyone()
    return list(_whole_lines((out / "rows.jsonl").read_text(encoding="utf-8")))


def _files(out: Path) -> list[Path]:
    return [f for f in (out / "rows.jsonl", *sorted(out.glob("rows-*.jsonl"))) if f.is_file()]


def whole_batches(rows: list[dict], ids: list[str], size: int) -> list[dict]:
    """The rows that belong to complete batches of `size` ids."""
    done = {row["id"] for row in rows}
    batches = [batch for batch in batched(ids, size) if all(name in done for name in batch)]
    complete = {name for batch in batches for name in batch}
    return [row for row in rows if row["id"] in complete]


def rewrite(out: str | Path | None, rows: list[dict]) -> None:
    """Replaces `rows.jsonl`, and removes the row files of other processes of this run."""
    if out is None or not is_main_process():
        return
    with atomic_write(Path(out) / "rows.jsonl") as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in Path(out).glob("rows-*.jsonl"):
        file.unlink()


def _whole_lines(text: str) -> Iterator[dict]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def collect(
    out: str | Path | None,
    batches: list[Any],
    ask: Callable[[Any], list[dict]],
    *,
    bar: str,
    unit: str,
    had: int,
    progress: bool,
) -> list[dict]:
    """Runs `ask` on all batches, stores the rows, and returns all of them.

    They are in the order of the batches. Several processes take batches in turns; each stores its
    rows in its own file.
    """
    wait_for_everyone()  # rows.jsonl is complete from here on
    mine, fresh = process_share(list(enumerate(batches))), []
    total = had + sum(map(len, batches))
    with tqdm(
        total=total, initial=had, desc=bar, unit=unit, disable=not (progress and is_main_process())
    ) as shown:
        for number, batch in mine:
            rows = ask(batch)
            if out is not None:
                with open(_own(Path(out)), "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
            fresh.append((number, rows))
            shown.update(len(rows))
    return [row for _, rows in sorted(gather_rows(fresh), key=lambda pair: pair[0]) for row in rows]


def _own(out: Path) -> Path:
    return out / ("rows.jsonl" if is_main_process() else f"rows-{processes().process_index}.jsonl")


def batched(items: list, size: int) -> list[list]:
    """Items in lists of `size`; the last list may be shorter."""
    return [items[k : k + size] for k in range(0, len(items), size)]


def ordered(rows: list[dict], ids: list[str]) -> list[dict]:
    """Rows in the order of the data set: intervals are drawn by position."""
    place = {name: k for k, name in enumerate(ids)}
    return sorted(rows, key=lambda row: place[row["id"]])


def finish(out: str | Path | None, rows: list[dict], summary: dict) -> None:
    """Writes all rows as one file, and the summary."""
    rewrite(out, rows)
    if out is not None and is_main_process():
        with atomic_write(Path(out) / "summary.json") as aside:
            aside.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    wait_for_everyone()
