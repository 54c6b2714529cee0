"""Validation during training: scores, drawn answers, and the best weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from transformers import TrainerCallback

from reasonseg.errors import InputError
from reasonseg.evaluation.benchmarks import WAYS, evaluate_benchmark
from reasonseg.runtime import is_main_process
from reasonseg.structures.contact_sheet import contact_sheet
from reasonseg.structures.images import atomic_write
from reasonseg.structures.overlay import draw_overlay
from reasonseg.structures.sample import Sample

SHOWN = 12  # number of samples on a sheet
LOG, BEST = "validation.jsonl", "best.safetensors"


class Validation(TrainerCallback):
    """Evaluates the model at every checkpoint.

    It writes a line in `validation.jsonl`, a sheet of answers, and `best.safetensors` where
    `metric` is highest. It runs before a checkpoint counts as complete: a run that is killed in
    between is evaluated again. Raises `InputError` for an unknown metric or missing data.
    """

    def __init__(
        self, objective: Any, config: Any, metric: str, limit: int, folder: Path, begun: int
    ):
        self.objective, self.config, self.metric, self.limit, self.folder = (
            objective,
            config,
            metric,
            limit,
            folder,
        )
        config.build()  # missing data raises here, not at the first checkpoint
        known = [f"{way}.{score}" for way in WAYS for score in ("giou", "ciou", "n_acc", "t_acc")]
        if metric not in known:
            raise InputError(f"metric: no {metric!r}; there are {', '.join(known)}")
        file = folder / LOG
        lines = (
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            if file.is_file()
            else []
        )
        self.lines = [line for line in lines if line["step"] <= begun]

    def on_save(self, args, state, control, **_):
        """Called by the Trainer after a checkpoint."""
        segmenter = self.objective.segmenter
        precise = torch.autocast(segmenter.device.type, torch.bfloat16, enabled=args.bf16)
        with torch.random.fork_rng(), precise:  # the precision of training
            summary = evaluate_benchmark(
                segmenter,
                self.config,
                name="validation",
                limit=self.limit,
                progress=state.is_world_process_zero,
            )
            value = found(summary, self.metric)
            better = value > max((line["value"] for line in self.lines), default=-1.0)
            self.lines.append({"step": state.global_step, "value": value, **summary})
            if not is_main_process():
                segmenter.forget()
                return
            data = self.config.build()
            every = max(min(len(data), self.limit) // SHOWN, 1)
            samples = [data[i] for i in range(0, min(len(data), self.limit), every)][:SHOWN]
            draw_answers(segmenter, samples, self.folder / f"validation-{state.global_step}.png")
        segmenter.forget()  # the next step changes the weights
        if better:
            with atomic_write(self.folder / BEST) as aside:
                save_model(self.objective, str(aside))
        with atomic_write(self.folder / LOG) as aside:
            aside.write_text(
                "".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8"
            )


def found(summary: dict, metric: str) -> float:
    """A number of a summary by its dotted key, such as `generated.giou`.

    Raises `InputError` where there is none.
    """
    value: Any = summary
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        raise InputError(
            f"metric: a summary has no {metric!r}; there are generated.giou, teacher_forced.ciou "
            "and the like"
        )
    return float(value)


@torch.inference_mode()
def draw_answers(segmenter: Any, samples: list[Sample], file: Path) -> None:
    """Draws a model's answers to samples on one sheet, a PNG file."""
    answers = segmenter.batch([s.query for s in samples])
    pictures = [
        draw_overlay(s.query.image, a.masks, a.labels, a.scores)
        for s, a in zip(samples, answers, strict=True)
    ]
    captions = [f"{s.query.text}\n{a.text}" for s, a in zip(samples, answers, strict=True)]
    with atomic_write(file) as aside:
        contact_sheet(list(zip(pictures, captions, strict=True))).save(aside, format="PNG")
