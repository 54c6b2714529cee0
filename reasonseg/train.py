"""Training: stages one after another on transformers' Trainer, each killed and resumed at any step.

A stage is a folder under `out`; a finished one holds `finished.safetensors` and is not run again. Under `accelerate launch` or
`torchrun` several processes share every step; the first one writes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from reasonseg.adapters import add_lora, add_rows, fold_adapters
from reasonseg.attention import use_products
from reasonseg.errors import InputError
from reasonseg.frozen import FrozenCache
from reasonseg.images import written_aside
from reasonseg.objectives import OBJECTIVES, Codes, Objective
from reasonseg.optimizers import MuonAdamW
from reasonseg.processes import processes
from reasonseg.runs import Stage, TrainSettings
from reasonseg.segmenter import Segmenter
from reasonseg.validation import BEST, Validation

COMPLETE = "complete"  # a file in a checkpoint folder, written last
WEIGHTS = "model.safetensors"


def train(settings: TrainSettings) -> Segmenter:
    """Runs what is not finished yet and returns the trained model, saved under `out`/model in 16 bit."""
    set_seed(settings.seed)
    segmenter = _beginning(settings)
    out, extras = Path(settings.out), {}
    out.mkdir(parents=True, exist_ok=True)
    for name, stage in settings.stages.items():
        set_seed(settings.seed + stage.seed)  # what an objective adds begins at random, the same in a run that goes on
        objective = _objective(segmenter, stage, extras)
        for parameter in objective.parameters():
            if parameter.requires_grad:  # small steps would be lost in bfloat16
                parameter.data = parameter.data.float()
        finished = out / name / "finished.safetensors"
        if finished.is_file():
            load_model(objective, finished)
        else:
            backbone = objective.segmenter.backbone
            if stage.lora:
                add_lora(backbone.layers, stage.lora, stage.alpha, stage.dropout)
            if stage.tokens:
                add_rows(backbone.model, backbone.markers.ids)
            run_stage(objective, stage, settings, out / name)
            if stage.lora or stage.tokens:
                fold_adapters(backbone)
            objective.finish()
            if processes().is_main_process:
                _keep(objective, finished)
            processes().wait_for_everyone()
        if isinstance(objective, Codes):
            extras["coder"] = objective.coder
    segmenter.requires_grad_(True).eval()
    seen = {name: stage.steps * stage.batch for name, stage in settings.stages.items()}
    about = segmenter.settings.about
    segmenter.settings = replace(segmenter.settings, about={**about, "rounds": [*about.get("rounds", []), seen]})
    if processes().is_main_process:
        segmenter.save_pretrained(out / "model", torch.float16 if settings.dtype == "float32" else torch.bfloat16)
    processes().wait_for_everyone()
    return segmenter


def _keep(objective: Objective, finished: Path) -> None:
    """Writes what a stage ended with; its checkpoints have served."""
    with written_aside(finished) as aside:
        save_model(objective, str(aside))
    for checkpoint in finished.parent.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _beginning(settings: TrainSettings) -> Segmenter:
    if settings.model is not None:
        segmenter = Segmenter.build(settings.model)
        for parameter in segmenter.parameters():  # buffers (rotary angles) stay as precise as they are
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
        segmenter.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.products:
        use_products(segmenter.backbone.model)
    return segmenter


def _objective(segmenter: Segmenter, stage: Stage, extras: dict) -> Objective:
    options = dict(stage.options)
    if stage.objective == "language" and options.get("aim"):
        if "coder" not in extras:
            raise InputError("stage option aim needs a stage of objective codes before it")
        options["coder"] = extras["coder"]
    try:
        objective = OBJECTIVES[stage.objective](segmenter, **options)
    except TypeError as error:
        raise InputError(f"options of objective {stage.objective}: {error}") from None
    names = [name for name, _ in objective.named_parameters(remove_duplicate=False)]
    if idle := [prefix for prefix in stage.train if not any(name.startswith(prefix) for name in names)]:
        raise InputError(f"train: no parameter begins with {idle[0]!r}")
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(not stage.train or name.startswith(stage.train))
    return objective


def run_stage(objective: Objective, stage: Stage, settings: TrainSettings, folder: Path) -> None:
    """Trains one objective, or goes on from the newest complete checkpoint in `folder`."""
    count = processes().num_processes
    if stage.batch % (count * stage.accumulate):
        raise InputError(
            f"batch {stage.batch} cannot be shared by {count} processes with accumulate = {stage.accumulate}; "
            f"take a multiple of {count * stage.accumulate}"
        )
    if settings.features:
        objective.segmenter.frozen = FrozenCache(Path(settings.features))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch // (count * stage.accumulate),
        gradient_accumulation_steps=stage.accumulate,
        ddp_find_unused_parameters=True,  # a batch may draw no mask, or show no example
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for several processes, not for torch's DataParallel
    data = objective.dataset(settings.data, stage.steps * stage.batch, settings.seed + stage.seed)
    trainer = StageTrainer(
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
        trainer.callback_handler.callbacks.insert(0, Validation(objective, *known, folder, begun))  # before Marker
    trainer.train(resume_from_checkpoint=newest)
    objective.segmenter.frozen = None
    processes().wait_for_everyone()  # the first one may still be writing
    if settings.validation is not None and (folder / BEST).is_file():
        load_model(objective, folder / BEST)


def latest(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; others are removed."""
    for checkpoint in list(folder.glob("checkpoint-*")):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda c: int(c.name.split("-")[1]))
    return str(checkpoints[-1]) if checkpoints else None


def begin_worker(given: Callable[[int], None] | None, number: int) -> None:
    """A loader's worker: killed with its parent, where the system can; a killed parent's would wait for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if given is not None:
        given(number)


class Marker(TrainerCallback):
    """Marks a checkpoint as complete once everything in it is on the disk."""

    def on_save(self, args, state, control, **_):
        """Called by the Trainer after the last file."""
        if not state.is_world_process_zero:
            return
        os.sync()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class StageTrainer(Trainer):
    """Trainer with our optimizer, data in the order of their index, and every part of the loss in the log."""

    def __init__(self, stage: Stage, **arguments):
        super().__init__(**arguments)
        self.stage = stage
        self.sums: dict[str, float] = {}
        self.seen = 0
        self.model_accepts_loss_kwargs = True  # where `counts` are told, losses are not divided again

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)

    def get_train_dataloader(self):
        """Loaders whose workers end with this process, however it ends."""
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's stands around torch's
        inner.worker_init_fn = partial(begin_worker, inner.worker_init_fn)
        return loader

    def create_optimizer(self, model=None):
        """Over what is trained: Muon and AdamW, or AdamW alone."""
        if self.stage.optimizer == "muon":
            self.optimizer = MuonAdamW(self.model.named_parameters(), self.stage.lr)
        else:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, self.stage.lr, betas=(0.9, 0.95), weight_decay=0.0)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Linear warm-up, a plateau, linear decay."""
        stage = self.stage

        def factor(step: int) -> float:
            rest = (stage.steps - step) / max(stage.steps * stage.decay, 1)
            return min((step + 1) / max(stage.warmup, 1), 1.0) * max(min(rest, 1.0), stage.floor)

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, and what its losses are averaged over: counts of all processes' together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        objective = self.accelerator.unwrap_model(self.model)
        found = [objective.counts(batch) for batch in batches]
        if not all(found):
            return batches, None
        names = list(found[0])
        total = torch.tensor([float(sum(f[name] for f in found)) for name in names], device=device)
        return batches, dict(zip(names, self.accelerator.reduce(total, "sum").tolist(), strict=True))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective's loss; its parts are averaged into the log.

        With counts a loss is a part of the step's; processes are averaged by DDP, so each counts as often as there are.
        """
        counted = num_items_in_batch is not None
        parts = model(inputs, num_items_in_batch) if counted else model(inputs)
        times = self.accelerator.num_processes if counted else 1
        micro = self.stage.accumulate if counted else 1
        for name, value in parts.items():
            if name != "loss":
                self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * times * micro
        self.seen += 1
        loss = parts["loss"] * times
        return (loss, parts) if return_outputs else loss

    def log(self, logs, *arguments, **options):
        """Adds the parts, averaged over processes."""
        if self.seen:
            mine = torch.tensor([self.sums[n] / self.seen for n in sorted(self.sums)], device=self.args.device)
            means = self.accelerator.reduce(mine, "mean").tolist()
            logs |= {name: round(value, 4) for name, value in zip(sorted(self.sums), means, strict=True)}
            self.sums, self.seen = {}, 0
        super().log(logs, *arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict=None):
        os.makedirs(output_dir, exist_ok=True)
        save_file(changing(self.model), os.path.join(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        kept, own = load_file(os.path.join(resume_from_checkpoint, WEIGHTS)), changing(model or self.model)
        if set(kept) != set(own):
            raise InputError(f"{resume_from_checkpoint} is of a run that trained other parameters; remove it")
        for name, value in own.items():
            value.copy_(kept[name])


@torch.no_grad()
def changing(objective: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: trained parameters, and buffers that are saved. What is frozen need not lie in every checkpoint."""
    found = {name: p.data for name, p in objective.named_parameters() if p.requires_grad}
    saved = objective.state_dict(keep_vars=True)
    return found | {name: b for name, b in objective.named_buffers() if name in saved}
