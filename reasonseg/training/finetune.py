"""Fine-tuning of a model on a folder of images.

The folder is checked first, and the model is evaluated before and after. A run that is killed
resumes at any step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from reasonseg.checkpoints.delta import Changes, origin_of
from reasonseg.config.schema import Kind
from reasonseg.config.training import Stage, TrainSettings
from reasonseg.datasets.folder import VALIDATION
from reasonseg.datasets.folder import Config as FolderConfig
from reasonseg.errors import InputError
from reasonseg.evaluation.benchmarks import evaluate_benchmark
from reasonseg.nn.lora import add_lora, add_rows, fold_adapters
from reasonseg.nn.quantization import is_quantized
from reasonseg.runtime import is_distributed
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.images import atomic_write
from reasonseg.training.objectives.language import Language
from reasonseg.training.prepare import (
    FinetuneSettings,
    Prepared,
    Steps,
    claim,
    identity,
    prepare,
)
from reasonseg.training.run import run_stage
from reasonseg.training.validation import SHOWN, draw_answers

# parameters that are trained in addition to the language model
DRAWS = (
    "segmenter.decoder.model.mask_decoder.",
    "segmenter.prompter.",
)


def finetune(
    segmenter: Segmenter,
    root: str,
    out: str | Path,
    settings: FinetuneSettings,
    skip_bad: bool = False,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    """Trains on the folder `root`, writes the results under `out`, and returns the summary.

    It writes `understood/`, `before/`, `after/`, `model/` and `summary.json`. The summary has gIoU
    on the validation images before and after; for a finished run it is returned at once. `prepared`
    is the folder where it was checked already. Raises `InputError` as `prepare` does, and where
    `out` holds a run with other settings, images or another model.
    """
    out, steps = Path(out), checked_steps(segmenter, settings.train)
    data = prepared or prepare(root, out, settings, skip_bad)
    claim(out, identity(settings, segmenter.fingerprint, root, data.bad))
    if (out / "summary.json").is_file():
        return json.loads((out / "summary.json").read_text(encoding="utf-8"))
    data.show(out)
    markers = segmenter.language()[0].markers
    absent = settings.data.absent if markers.rej is not None else 0.0
    validation, training = data.part(VALIDATION), data.part("train", absent)
    before = score(segmenter, validation, out / "before")
    keep(segmenter, learn(segmenter, training, out, steps), Path(root), out / "model", steps.save)
    after = score(segmenter, validation, out / "after")
    summary = {"before": before, "after": after, "settings": asdict(settings)}
    summary |= {"n_train": len(training.build()), "n_validation": len(validation.build())}
    summary |= {"skipped": len(data.bad), "remarks": [r.text for r in data.samples.remarks]}
    with atomic_write(out / "summary.json") as aside:
        aside.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out / "training")
    return summary


def further(out: str | Path) -> tuple[Path, Path]:
    """(model, folder) to train a finished run `out` further: its last model, and the next folder.

    The folders are `further-1`, `further-2` and so on below `out`; one that is not finished comes
    before a new one. Raises `InputError` where `out` holds no finished run.
    """
    latest, number = Path(out), 0
    while True:
        if not (latest / "summary.json").is_file():
            raise InputError(
                f"{latest} holds no finished run; leave --more-steps out to finish it first"
            )
        number += 1
        following = Path(out) / f"further-{number}"
        if not (following / "summary.json").is_file():
            return latest / "model", following
        latest = following


def checked_steps(segmenter: Segmenter, steps: Steps) -> Steps:
    """The training settings, adapted to this model.

    Raises `InputError` where the model cannot be trained with them.
    """
    segmenter.capabilities.require("finetune", "words")
    if is_distributed():
        raise InputError(
            "finetune runs in one process; several share `reasonseg train` on a folder "
            "(docs/how-to/train.md)"
        )
    if next(segmenter.parameters()).dtype == torch.float16:
        raise InputError("float16 overflows in training; take bfloat16 or float32 (--dtype)")
    if any(is_quantized(module) for module in segmenter.modules()):
        if not steps.lora:
            raise InputError(
                "the layers of a quantized model cannot be trained whole; leave train.lora=0 out"
            )
        steps = replace(steps, save="changes")
    if steps.save == "changes" and segmenter.origin is None:
        raise InputError(
            "train.save=changes needs a model that was loaded from somewhere; save it first"
        )
    return steps


def keep(segmenter: Segmenter, changes: Changes, root: Path, folder: Path, save: str) -> None:
    """Writes the trained model to `folder` under a new name: whole, or only the `changes`."""
    about = segmenter.settings.about
    changes.about = {**about, "name": f"{about.get('name', 'model')}-{root.resolve().name}"}
    segmenter.settings = replace(segmenter.settings, about=changes.about)
    if save == "changes" and segmenter.origin is not None:
        changes.save(folder, segmenter.origin)
    else:
        segmenter.save_pretrained(folder)
    segmenter.origin = origin_of(folder, {"source": str(folder)})


def learn(segmenter: Segmenter, data: FolderConfig, out: Path, steps: Steps) -> Changes:
    """Trains the model in place and returns what changed.

    Adapters are folded into the weights at the end, except for those of quantized layers. Trained
    parameters are float32 during training, whatever the dtype of the model: small steps would be
    lost in bfloat16.
    """
    stage = Stage(
        "language",
        steps.max_steps,
        steps.batch,
        steps.lr,
        steps.warmup,
        decay=1.0,
        optimizer="adamw",
        seed=steps.seed,
        accumulate=steps.accumulate,
    )
    dtype = next(segmenter.parameters()).dtype
    run = TrainSettings(
        Kind("folder", data),
        {"finetune": stage},
        start="given",
        out=str(out),
        seed=steps.seed,
        save_every=steps.save_every,
        bf16=dtype != torch.float32,
        features=str(out / "training" / "features"),
    )
    backbone, _ = segmenter.language()
    set_seed(steps.seed)  # adapters have random initial values
    objective = Language(segmenter)
    for parameter in choose(objective, steps):
        parameter.data = parameter.data.float()
    if steps.checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    run_stage(objective, stage, run, out / "training")
    if steps.checkpointing:
        backbone.model.gradient_checkpointing_disable()
    for parameter in segmenter.parameters():
        if parameter.is_floating_point() and parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    changes = Changes.of(segmenter, steps.alpha)
    changes.tensors = {name: p.detach().clone() for name, p in changes.tensors.items()}
    fold_adapters(segmenter)
    for parameter in segmenter.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    segmenter.eval()
    return changes


def choose(objective: Language, steps: Steps) -> list[torch.nn.Parameter]:
    """Marks the parameters to train and returns them; vision towers and image encoders stay frozen.

    In a model with new markers (LLaVA with a SAM beside it), their rows of embeddings and head are
    trained too. Raises `InputError` in a model without words.
    """
    backbone, _ = objective.segmenter.language()
    objective.requires_grad_(False)
    chosen = [p for name, p in objective.named_parameters() if name.startswith(DRAWS)]
    chosen += (
        add_lora(backbone.layers, steps.lora, steps.alpha)
        if steps.lora
        else list(backbone.layers.parameters())
    )
    new = objective.segmenter.settings.new_markers
    if new and steps.lora and steps.tokens == "rows":
        chosen += add_rows(backbone.model, backbone.markers.ids)
    elif new or not steps.lora:
        chosen += [
            backbone.model.get_input_embeddings().weight,
            backbone.model.get_output_embeddings().weight,
        ]
    for p in chosen:
        p.requires_grad_(True)
    return list(dict.fromkeys(chosen))


def score(segmenter: Segmenter, config: FolderConfig, out: Path) -> dict[str, Any]:
    """gIoU and cIoU on a folder, teacher-forced and generated; `sheet.png` shows some answers."""
    summary = evaluate_benchmark(segmenter, config, name=out.name, out=out)
    samples = config.build()
    shown = [samples[i] for i in range(0, len(samples), max(len(samples) // SHOWN, 1))][:SHOWN]
    draw_answers(segmenter, shown, out / "sheet.png")
    return summary
