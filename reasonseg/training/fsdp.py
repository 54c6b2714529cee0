"""Training with weights, gradients and optimizer states sharded over processes (FSDP2).

It is torch's `fully_shard` under our Trainer. accelerate's own FSDP silently becomes DDP where
there is no GPU. This one is the same on CPUs, so that it can be tested there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from reasonseg.errors import InputError
from reasonseg.runtime import is_distributed, processes
from reasonseg.training.objectives.base import Objective
from reasonseg.training.trainer import SHARDED_OPTIMIZER as OPTIMIZER
from reasonseg.training.trainer import WEIGHTS, StageTrainer, changing, like

SCHEDULER = "scheduler.pt"


def shard(objective: Objective) -> None:
    """Shards an objective over all processes.

    Every layer of the language model and of the image encoders is one unit, the rest another.
    Raises `InputError` in a single process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not is_distributed():
        raise InputError(
            "shard: true needs several processes; start with accelerate launch or torchrun, or "
            "leave it out"
        )
    state: Any = processes()  # its device is annotated as optional
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    segmenter = objective.segmenter
    layers = list(segmenter.backbone.layers) if segmenter.backbone is not None else []
    for encoder in segmenter.decoder.encoders:
        layers += max(
            (m for m in encoder.modules() if isinstance(m, nn.ModuleList)), key=len, default=[]
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def whole(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sharded tensors gathered on the CPU.

    All processes must call it together; only the first one gets the tensors.
    """
    kept = {}
    for name, value in values.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if processes().is_main_process:
            kept[name] = full.detach().cpu().contiguous()
    return kept


class ShardedTrainer(StageTrainer):
    """Trains one stage with a sharded model.

    Its checkpoints hold whole tensors, so that any number of processes can resume from them.
    """

    def __init__(self, stage, **arguments):
        super().__init__(stage, **arguments)
        shard(self.model)
        self.accelerator.prepare_model = lambda model, **_: (
            model
        )  # without this the model is wrapped in DDP

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss, with 0 times the sum of every parameter outside of the layers.

        So all processes reduce the gradients of the same parameters, also of those that a batch
        does not use.
        """
        self._all_speak(inputs)
        # accelerate's wrapper, which this one skips, would do this
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss, parts = super().compute_loss(model, inputs, True, num_items_in_batch)
        for p in self.model.parameters():
            # the layers are sharded again here; a batch uses all of them
            if p.requires_grad and not isinstance(p, DTensor):
                loss = loss + 0.0 * p.sum()
        return (loss, parts) if return_outputs else loss

    def _all_speak(self, inputs: dict) -> None:
        """Raises `InputError` where only some parts of a batch run the language model.

        The processes would wait for one another for ever.
        """
        with_words = torch.tensor(
            float(any(s.query.text.strip() for s in inputs.get("samples", ()))),
            device=self.args.device,
        )
        if 0 < float(self.accelerator.reduce(with_words, "sum")) < self.accelerator.num_processes:
            raise InputError(
                "shard: true needs a question in words in every part of a batch; leave samples "
                "without words out"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what training changes."""
        folder, kept = self.folder_of(output_dir), whole(changing(self.model))
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(kept, folder / WEIGHTS)

    def _states(self) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer, {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer, trained = self._states()
        flat = {
            f"{name}/{key}": v
            for name, p in trained.items()
            for key, v in optimizer.state.get(p, {}).items()
        }
        kept = whole(flat)
        if self.args.should_save:
            save_file(kept, os.path.join(output_dir, OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not (Path(checkpoint) / OPTIMIZER).is_file():
            raise InputError(
                f"{checkpoint} is of a run that was not sharded; go on without shard=true, or "
                f"remove {Path(checkpoint).parent}"
            )
        optimizer, trained = self._states()
        for name, value in load_file(os.path.join(checkpoint, OPTIMIZER)).items():
            name, _, key = name.rpartition("/")
            p = trained[name]
            optimizer.state[p][key] = like(p.data, value) if value.shape == p.shape else value
        self.lr_scheduler.load_state_dict(
            torch.load(os.path.join(checkpoint, SCHEDULER), weights_only=True)
        )
        for group, rate in zip(
            optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = rate
