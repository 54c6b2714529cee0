"""Fine-tuning of a model on a folder of images.

The folder is checked first, and the model is evaluated before and after. A run that is killed
resumes at any step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from reasonseg.checkpoints.delta import Changes, origin_of
from reasonseg.config.schema import Kind
from reasonseg.config.training import Stage, TrainSettings
from reasonseg.datasets.folder import VALIDATION, Folder, check
from reasonseg.datasets.folder import Config as FolderConfig
from reasonseg.errors import InputError
from reasonseg.evaluation.benchmarks import evaluate_benchmark
from reasonseg.nn.lora import add_lora, add_rows, fold_adapters
from reasonseg.nn.quantization import is_quantized
from reasonseg.runtime import is_distributed
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.contact_sheet import save_sheet
from reasonseg.structures.images import atomic_write
from reasonseg.training.objectives.language import Language
from reasonseg.training.run import run_stage
from reasonseg.training.validation import SHOWN, draw_answers

# parameters that are trained in addition to the language model
DRAWS = (
    "segmenter.decoder.model.mask_decoder.",
    "segmenter.prompter.",
)


@dataclass(frozen=True)
class Steps:
    """Training settings of a fine-tuning run.

    - `lora`: rank of the adapters on the language model's q and v projections. 0 trains the
      language model's layers, embeddings and head in full.
    - `alpha`: the adapters are scaled by `alpha` / rank.
    - `tokens`: in a model with new markers, their `rows` are trained, or embeddings and head
      `whole` (LISA's recipe).
    - `accumulate`: number of micro-batches into which a batch is split, one after the other.
    - `checkpointing`: activations of the language model's layers are computed again in the backward
      pass and not kept. Both this and `accumulate` save memory for time.
    - `save`: a whole `model`, or the `changes` only, a small folder with the name of the model to
      which they apply.
    - `max_steps`, `batch` (questions per step), `lr` (peak learning rate), `warmup` (steps),
      `save_every` (steps between checkpoints), `seed`.
    """

    max_steps: int = 300
    batch: int = 8
    lr: float = 3e-4
    warmup: int = 20
    lora: int = 8
    alpha: float = 16.0
    tokens: Literal["rows", "whole"] = "rows"
    save: Literal["model", "changes"] = "model"
    accumulate: int = 1
    checkpointing: bool = False
    save_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Settings of the data, both 0..1.

    `share` of the images is kept for validation; `absent` of the questions are about things that
    are not in the image.
    """

    share: float = 0.1
    absent: float = 0.1


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings that `reasonseg finetune FOLDER ... key=value` can change."""

    train: Steps = field(default_factory=Steps)
    data: Data = field(default_factory=Data)


def finetune(
    segmenter: Segmenter,
    root: str,
    out: str | Path,
    settings: FinetuneSettings,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Trains on the folder `root`, writes the results under `out`, and returns the summary.

    It writes `understood/`, `before/`, `after/`, `model/` and `summary.json`. The summary has gIoU
    on the validation images before and after; for a finished run it is returned at once. Raises
    `InputError` with a list of all samples that cannot be read (unless `skip_bad`), where nothing
    is left to train or to validate on, and where `out` holds a run with other settings, images or
    another model.
    """
    out, steps = Path(out), checked_steps(segmenter, settings.train)
    markers = segmenter.language()[0].markers
    absent = settings.data.absent if markers.rej is not None else 0.0
    config = FolderConfig(root, share=settings.data.share, absent=absent, seed=steps.seed)
    samples = config.build()
    bad = unusable(samples, skip_bad)
    key = {"settings": asdict(settings), "model": segmenter.fingerprint}
    claim(out, {**key, "files": digest_of(Path(root)), "skipped": bad})
    if (out / "summary.json").is_file():
        return json.loads((out / "summary.json").read_text(encoding="utf-8"))
    show(samples, bad, out)
    validation = replace(config, split=VALIDATION, skipped=tuple(bad))
    training = replace(config, split="train", skipped=tuple(bad))
    if not len(validation.build()):
        raise InputError(
            f"{root}: one image cannot serve for both training and validation; two or more are "
            "needed"
        )
    before = score(segmenter, validation, out / "before")
    keep(segmenter, learn(segmenter, training, out, steps), Path(root), out / "model", steps.save)
    after = score(segmenter, validation, out / "after")
    summary = {"before": before, "after": after, "settings": asdict(settings), "skipped": len(bad)}
    summary |= {"n_train": len(training.build()), "n_validation": len(validation.build())}
    with atomic_write(out / "summary.json") as aside:
        aside.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out / "training")
    return summary


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


def claim(out: Path, key: dict) -> None:
    """Writes the identity of a run to `run.json`.

    Raises `InputError` where the folder holds a different run.
    """
    key, file = json.loads(json.dumps(key)), out / "run.json"
    if file.is_file() and (kept := json.loads(file.read_text())) != key:
        changed = ", ".join(name for name in key if kept.get(name) != key[name])
        raise InputError(
            f"{out} holds a run with other {changed}; choose another --out or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as aside:
        aside.write_text(json.dumps(key, indent=1) + "\n")


def digest_of(root: Path) -> str:
    """A SHA-256 hash of the names, sizes and modification times of all files in a folder."""
    files = sorted(f for f in root.rglob("*") if f.is_file())
    listed = [f"{f.relative_to(root)} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


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


def unusable(samples: Folder, skip_bad: bool) -> list[str]:
    """Reads every sample and returns the ids of those that cannot be used.

    Raises `InputError` where there are such samples without `skip_bad`, or no others.
    """
    problems = check(samples)
    if problems and not skip_bad:
        listed = "; ".join(problem for _, problem in problems[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{len(problems)} of {len(samples)} samples cannot be used: {listed}{more}; "
            "repair them, or skip them with --skip-bad"
        )
    if len(problems) == len(samples):
        raise InputError(f"{samples.config.root} holds no sample that can be used")
    return [name for name, _ in problems]


def show(samples: Folder, bad: list[str], out: Path) -> None:
    """Draws some samples as they were read, into `understood/`."""
    good = [i for i in range(len(samples)) if samples.id(i) not in bad]
    save_sheet(
        [samples[i] for i in good[:: max(len(good) // SHOWN, 1)][:SHOWN]], out / "understood"
    )


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
