"""The settings of a training run, read from YAML without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind, NameIn, Room, parse, read
from reasonseg.errors import InputError


@dataclass(frozen=True)
class Stage:
    """One stage of a training run.

    `train` lists prefixes of the parameters to train (empty: all). `warmup` is in steps. `decay` is
    the fraction of steps at the end (0..1) over which the learning rate falls to `floor` times its
    value. `options` go to the objective. `optimizer`: `muon` for matrices with AdamW for the rest,
    to train from scratch; or `adamw` as in LISA (betas 0.9 and 0.95, no weight decay).

    `batch` is the size of a whole step, over all processes and the `accumulate` micro-batches of
    each, so one config trains the same model on one device or many. `lora` is the rank of adapters
    on the projections `targets` of the language model (0: none), with scale `alpha` and with
    `dropout` before them; they are trained together with `train` and merged into the weights at the
    end of the stage.
    `tokens` trains only the rows of the markers in embeddings and head (peft's trainable tokens).
    Raises `InputError` where `batch` is not a multiple of `accumulate`.
    """

    objective: Annotated[str, NameIn("training.objectives")]
    steps: int
    batch: int
    lr: float
    warmup: int = 50
    decay: float = 0.5
    train: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    optimizer: Literal["muon", "adamw"] = "muon"
    accumulate: int = 1
    lora: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    tokens: bool = False
    floor: float = 1 / 30

    def __post_init__(self):
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise InputError(
                f"batch {self.batch} cannot be split into accumulate = {self.accumulate} equal "
                "parts"
            )


@dataclass(frozen=True)
class TrainSettings:
    """A training run: its initial model, its data, its stages in order and its output folder.

    `model` starts with new weights; `start` continues from a model folder (`embedded`: the one in
    the package). A run has exactly one of the two. `references` is a prompter for reference images,
    added to a model that has none. `examples`: from this run on, the language model reads reference
    images together with text (LLaVA backbones). `validation` is scored at every checkpoint on its
    first `validation_limit` samples; a stage ends with the weights of the checkpoint with the
    highest `metric`, or without `validation` with the last. `dtype`: precision of loaded weights
    that are not trained, and of the saved files (with float32 the files are float16); trained
    weights are float32. `features`: a folder that stores the outputs of frozen encoders for each
    image, so that they are computed once (for small sets). `checkpointing`: the layers of the
    language model are computed again in the backward pass instead of stored, which saves memory.
    `shard`: every process holds a part of each weight, gradient and optimizer state (FSDP), for
    models that do not fit otherwise. `products`: attention as plain matrix products, faster for
    small transformers on CPU (`attention.py`). Raises `InputError` where settings exclude each
    other.
    """

    data: Annotated[Kind, Room("datasets")]
    stages: dict[str, Stage]
    model: ModelSettings | None = None
    start: str = ""
    references: Annotated[Kind, Room("prompters")] | None = None
    out: str = "out/train"
    seed: int = 0
    workers: int = 1
    save_every: int = 100
    log_every: int = 10
    bf16: bool = True
    examples: bool = False
    validation: Annotated[Kind, Room("datasets")] | None = None
    validation_limit: int = 200
    metric: str = "generated.giou"
    dtype: Literal["float32", "bfloat16"] = "float32"
    features: str = ""
    checkpointing: bool = False
    shard: bool = False
    products: bool = False
    report_to: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.model is None) == (not self.start):
            raise InputError(
                "a run needs one of model (fresh weights) and start (a model folder, or embedded)"
            )
        if self.shard and (self.features or self.validation is not None):
            raise InputError(
                "shard: true goes without features and validation; score the model after the run, "
                "when it is whole again"
            )
        if self.shard and (
            muon := [name for name, stage in self.stages.items() if stage.optimizer != "adamw"]
        ):
            raise InputError(
                f"shard: true needs optimizer: adamw; stage {muon[0]} has muon, which needs "
                "whole matrices"
            )
        if self.dtype == "bfloat16" and not self.bf16:
            raise InputError(
                "dtype: bfloat16 needs bf16: true, which makes float32 and bfloat16 weights work "
                "together"
            )


def read_run(file: str | Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """The settings of a config file, with `a.b=value` overrides applied.

    Raises `InputError` with the place of the mistake and the most similar valid name.
    """
    return parse(TrainSettings, read(file, overrides))
