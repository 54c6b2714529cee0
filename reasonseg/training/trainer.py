"""One stage on transformers' Trainer, with our optimizer, data order, log and checkpoints.

All parts of the loss are logged. A checkpoint is marked when it is complete.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback

from reasonseg.config.training import Stage
from reasonseg.errors import InputError
from reasonseg.training.optimizers import MuonAdamW

COMPLETE = "complete"  # a file in a checkpoint folder, written last
WEIGHTS = "model.safetensors"
SHARDED_OPTIMIZER = "optimizer.safetensors"  # of a sharded run, whose trainer stores it unsharded


def begin_worker(given: Callable[[int], None] | None, number: int) -> None:
    """Initialises a worker of the data loader.

    On Linux the worker is killed together with its parent; otherwise it would wait for ever after
    the parent was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if given is not None:
        given(number)


class Marker(TrainerCallback):
    """Marks a checkpoint as complete once all of its files are on the disk."""

    def on_save(self, args, state, control, **_):
        """Called by the Trainer after the last file is written."""
        if not state.is_world_process_zero:
            return
        os.sync()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class StageTrainer(Trainer):
    """A Trainer with our optimizer and data in the order of their index.

    All parts of the loss are in the log.
    """

    model: Any  # the objective
    accelerator: Any
    train_dataset: Any

    def __init__(self, stage: Stage, **arguments):
        super().__init__(**arguments)
        self.stage = stage
        self.sums: dict[str, float] = {}
        self.seen = 0
        self.model_accepts_loss_kwargs = True  # with `counts`, losses are not divided again

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)

    def get_train_dataloader(self):
        """A data loader whose workers end with this process, in whatever way it ends."""
        loader = super().get_train_dataloader()
        # accelerate's loader wraps that of torch
        inner = getattr(loader, "base_dataloader", loader)
        inner.worker_init_fn = partial(begin_worker, inner.worker_init_fn)
        return loader

    def create_optimizer(self, model=None):
        """The optimizer of the trained parameters: Muon with AdamW, or AdamW alone."""
        if self.stage.optimizer == "muon":
            self.optimizer = MuonAdamW(self.model.named_parameters(), self.stage.lr)
        else:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(
                trained, self.stage.lr, betas=(0.9, 0.95), weight_decay=0.0
            )
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
        """The micro-batches of a step, and the counts over which its losses are averaged.

        Counts are summed over all processes.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        objective = self.accelerator.unwrap_model(self.model)
        found = [objective.counts(batch) for batch in batches]
        if not all(found):
            return batches, None
        names = list(found[0])
        total = torch.tensor([float(sum(f[name] for f in found)) for name in names], device=device)
        return batches, dict(
            zip(names, self.accelerator.reduce(total, "sum").tolist(), strict=True)
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective's loss; its parts are averaged into the log.

        With counts, a loss is its part of the loss of the whole step. DDP averages over processes,
        so the loss is multiplied by their number.
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
        """Logs with the parts of the loss added, averaged over processes."""
        if self.seen:
            mine = torch.tensor(
                [self.sums[n] / self.seen for n in sorted(self.sums)], device=self.args.device
            )
            means = self.accelerator.reduce(mine, "mean").tolist()
            logs |= {
                name: round(value, 4) for name, value in zip(sorted(self.sums), means, strict=True)
            }
            self.sums, self.seen = {}, 0
        super().log(logs, *arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict=None):
        if not self.args.should_save:
            return
        folder = self.folder_of(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(changing(self.model), folder / WEIGHTS)

    def folder_of(self, output_dir: str | None) -> Path:
        """The folder of a checkpoint: `output_dir`, or the stage's folder where it is None."""
        return Path(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        restore(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / SHARDED_OPTIMIZER).is_file():
            raise InputError(
                f"{checkpoint} is of a sharded run; go on with shard=true, or remove "
                f"{Path(checkpoint).parent}"
            )
        super()._load_optimizer_and_scheduler(checkpoint)


@torch.no_grad()
def changing(objective: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: trained parameters, and buffers that are saved, by name.

    Frozen parameters are not stored in every checkpoint.
    """
    found = {name: p.detach() for name, p in objective.named_parameters() if p.requires_grad}
    saved = objective.state_dict(keep_vars=True)
    return found | {name: b for name, b in objective.named_buffers() if name in saved}


def restore(objective: torch.nn.Module, file: Path) -> None:
    """Loads a file with the tensors of `changing`.

    Raises `InputError` where other parameters were trained.
    """
    kept, own = load_file(file), changing(objective)
    if {n: v.shape for n, v in kept.items()} != {n: v.shape for n, v in own.items()}:
        raise InputError(
            f"{file} is of a run that trained other parameters; choose another out, or remove "
            f"{file.parent.parent}"
        )
    for name, value in own.items():
        value.copy_(like(value, kept[name]))


def like(place: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of `place`; its shard, where `place` is sharded."""
    if hasattr(place, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = place  # a DTensor
        return distribute_tensor(value.to(place.device), sharded.device_mesh, sharded.placements)
    return value.to(place.device)
