"""Training runs: stages one after another on transformers' Trainer; a killed run resumes.

A stage is a folder under `out`. A finished one holds `finished.safetensors` and is not run again.
Under `accelerate launch` or `torchrun` several processes share every step; the first one writes.
"""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_model, save_file, save_model
from transformers import TrainingArguments, set_seed

from reasonseg.config.kinds import kind_module, nearest
from reasonseg.config.training import Stage, TrainSettings
from reasonseg.errors import InputError
from reasonseg.nn.attention import use_products
from reasonseg.nn.feature_store import FeatureStore
from reasonseg.nn.lora import add_lora, add_rows, fold_adapters
from reasonseg.runtime import processes
from reasonseg.segmenters.base import Segmenter
from reasonseg.structures.images import atomic_write
from reasonseg.training.fsdp import ShardedTrainer, whole
from reasonseg.training.objectives.base import Objective
from reasonseg.training.trainer import COMPLETE, Marker, StageTrainer, changing, restore
from reasonseg.training.validation import BEST, Validation

FINISHED = "finished.safetensors"  # final weights of a stage
ADAPTERS = "adapters.safetensors"  # what a stage with adapters trained, before they are folded
TRAINED = "trained.safetensors"  # final weights of a sharded stage, adapters not folded yet


def train(settings: TrainSettings) -> Segmenter:
    """Runs all unfinished stages and returns the trained model; saves it under `out`/model.

    The saved weights have 16 bit.
    """
    set_seed(settings.seed)
    segmenter = _beginning(settings)
    out, extras = Path(settings.out), {}
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, segmenter)
    for name, stage in settings.stages.items():
        # an objective's own weights are random, and the same in a run that resumes
        set_seed(settings.seed + stage.seed)
        objective = _objective(segmenter, stage, extras)
        for parameter in objective.parameters():
            if parameter.requires_grad:  # small steps would be lost in bfloat16
                parameter.data = parameter.data.float()
        if (out / name / FINISHED).is_file():
            load_model(objective, out / name / FINISHED)
        elif not _finished(objective, stage, settings, out / name):
            del objective, segmenter  # sharded weights; the run continues from the files
            return train(settings)
        extras |= objective.hands_over()
    segmenter.requires_grad_(True).eval()
    segmenter.origin = None  # its weights are no longer the loaded ones
    seen = {name: stage.steps * stage.batch for name, stage in settings.stages.items()}
    about = segmenter.settings.about
    about = {**about, "rounds": [*about.get("rounds", []), seen]}
    segmenter.settings = replace(segmenter.settings, about=about)
    if processes().is_main_process:
        dtype = torch.float16 if settings.dtype == "float32" else torch.bfloat16
        segmenter.save_pretrained(out / "model", dtype)
    processes().wait_for_everyone()
    return segmenter


def _finished(objective: Objective, stage: Stage, settings: TrainSettings, folder: Path) -> bool:
    """Trains a stage and writes its final weights.

    False where the stage was sharded: the model must then be loaded again first.
    """
    backbone = objective.segmenter.backbone
    if backbone is None and (stage.lora or stage.tokens):
        raise InputError("lora and tokens are for models that read words; leave them out")
    if backbone is not None and stage.lora:
        add_lora(backbone.layers, stage.lora, stage.alpha, stage.dropout, stage.targets)
    if backbone is not None and stage.tokens:
        add_rows(backbone.model, backbone.markers.ids)
    if (folder / TRAINED).is_file():
        restore(objective, folder / TRAINED)
        processes().wait_for_everyone()  # all processes have read it before it is removed
    else:
        run_stage(objective, stage, settings, folder)
        if settings.shard:
            return False
    if backbone is not None and (stage.lora or stage.tokens):
        if processes().is_main_process:
            with atomic_write(folder / ADAPTERS) as aside:
                save_file(changing(objective), aside)
        fold_adapters(objective.segmenter)
    objective.finish()
    if processes().is_main_process:
        _keep(objective, folder / FINISHED)
    processes().wait_for_everyone()
    return True


def _claim(out: Path, segmenter: Segmenter) -> None:
    """Records the model with which a run starts.

    Checkpoints hold only what is trained, so they are valid for this model only.
    """
    file, model = out / "begun.json", segmenter.fingerprint
    if file.is_file() and (begun := json.loads(file.read_text(encoding="utf-8"))["model"]) != model:
        raise InputError(
            f"{out} holds a run that began with {begun}, not {model}; choose another out or "
            "remove it"
        )
    processes().wait_for_everyone()
    if processes().is_main_process and not file.is_file():
        with atomic_write(file) as aside:
            aside.write_text(json.dumps({"model": model}) + "\n", encoding="utf-8")


def _keep(objective: Objective, finished: Path) -> None:
    """Writes the final weights of a stage and removes its checkpoints."""
    with atomic_write(finished) as aside:
        save_model(objective, str(aside))
    (finished.parent / TRAINED).unlink(missing_ok=True)
    for checkpoint in finished.parent.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _beginning(settings: TrainSettings) -> Segmenter:
    if settings.model is not None:
        segmenter = Segmenter.build(settings.model)
        # buffers (rotary angles) keep their precision
        for parameter in segmenter.parameters():
            parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    else:
        source = None if settings.start == "embedded" else settings.start
        segmenter = Segmenter.from_pretrained(source, dtype=settings.dtype)
    if settings.references is not None and segmenter.references is None:
        segmenter = segmenter.with_references(settings.references)
    if settings.examples:
        segmenter = segmenter.reading_examples()
    segmenter.to(processes().device if torch.cuda.is_available() else "cpu")
    if settings.checkpointing:
        segmenter.language()[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.products:
        use_products(segmenter.language()[0].model)
    return segmenter


def _objective(segmenter: Segmenter, stage: Stage, extras: dict) -> Objective:
    place = f"options of objective {stage.objective}"
    make = kind_module("training.objectives", stage.objective, "objective").OBJECTIVE
    known = inspect.signature(make).parameters
    if unknown := [name for name in stage.options if name not in known and "options" not in known]:
        raise InputError(
            f"{place}: no option {unknown[0]!r}; {nearest(unknown[0], list(known)[1:])}"
        )
    if missing := [name for name in make.needs if name not in extras]:
        raise InputError(
            f"objective {stage.objective} needs a {missing[0]}, which an earlier stage has to "
            "provide"
        )
    try:
        objective = make(segmenter, **stage.options, **{name: extras[name] for name in make.needs})
    except TypeError as error:
        raise InputError(f"{place}: {error}") from None
    names = [name for name, _ in objective.named_parameters(remove_duplicate=False)]
    if idle := [
        prefix for prefix in stage.train if not any(name.startswith(prefix) for name in names)
    ]:
        raise InputError(f"train: no parameter begins with {idle[0]!r}")
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(not stage.train or name.startswith(stage.train))
    return objective


def run_stage(objective: Objective, stage: Stage, settings: TrainSettings, folder: Path) -> None:
    """Trains one objective; resumes from the newest complete checkpoint in `folder`.

    Raises `InputError` where the processes cannot share the batch evenly.
    """
    count = processes().num_processes
    if stage.batch % (count * stage.accumulate):
        raise InputError(
            f"batch {stage.batch} cannot be shared by {count} processes with accumulate = "
            f"{stage.accumulate}; "
            f"take a multiple of {count * stage.accumulate}"
        )
    if settings.features:
        objective.segmenter.feature_store = FeatureStore(Path(settings.features))
    arguments = _arguments(objective, stage, settings, folder)
    data = objective.dataset(settings.data, stage.steps * stage.batch, settings.seed + stage.seed)
    trainer = (ShardedTrainer if settings.shard else StageTrainer)(
        stage,
        model=objective,
        args=arguments,
        train_dataset=data,
        data_collator=objective.collate,
        callbacks=[Marker()],
    )
    with processes().main_process_first():
        newest = latest(folder)
    if settings.validation is not None:
        begun = int(newest.rsplit("-", 1)[1]) if newest else 0
        known = settings.validation.config, settings.metric, settings.validation_limit
        # it must run before Marker
        trainer.callback_handler.callbacks.insert(0, Validation(objective, *known, folder, begun))
    trainer.train(resume_from_checkpoint=newest)
    if settings.shard:
        kept = whole(changing(objective))
        if processes().is_main_process:
            with atomic_write(folder / TRAINED) as aside:
                save_file(kept, aside)
    objective.segmenter.feature_store = None
    processes().wait_for_everyone()  # the first one may still be writing
    if settings.validation is not None and (folder / BEST).is_file():
        load_model(objective, folder / BEST)


def _arguments(
    objective: Objective, stage: Stage, settings: TrainSettings, folder: Path
) -> TrainingArguments:
    """The settings of a stage as arguments of transformers' Trainer."""
    count = processes().num_processes
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch // (count * stage.accumulate),
        gradient_accumulation_steps=stage.accumulate,
        ddp_find_unused_parameters=True,  # a batch may have no mask, or no example
        learning_rate=stage.lr,
        bf16=settings.bf16,
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=False,
        seed=settings.seed,
        max_grad_norm=1.0,
        use_cpu=objective.segmenter.device.type == "cpu",
    )
    # several GPUs are for several processes, not for torch's DataParallel
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def latest(folder: Path) -> str | None:
    """The newest complete checkpoint in `folder`; incomplete ones are removed."""
    for checkpoint in list(folder.glob("checkpoint-*")):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda c: int(c.name.split("-")[1]))
    return str(checkpoints[-1]) if checkpoints else None
