"""The settings of a training run, read from YAML without loading torch."""

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
    """One stage. `train` lists prefixes of the parameters it changes (empty: all); `decay` is the
    share of steps at the end over which the learning rate falls to `floor` of itself; `options` go
    to the objective; `optimizer`: `muon` on matrices and AdamW on the rest, for training from
    nothing, or `adamw` as LISA has it (betas 0.9 and 0.95, no weight decay).

    `batch` is that of a whole step, over all processes and `accumulate` micro-batches of each: one
    config trains the same model on one device or many. `lora`: rank of adapters on the language
    model's q and v, trained beside `train` and folded into the weights when the stage ends, with
    `dropout` before them. `tokens` trains the rows of the markers alone, in embeddings and head
    (peft's trainable tokens).
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
    """A whole run: the model it starts from, its data, its stages in order and where it writes.

    `model` starts fresh, `start` goes on from a model folder (`embedded`: the one in the package);
    a run has one of the two. `references` is a prompter for examples, given to a model that has
    none yet. `examples`: from now on the language model reads references beside words (LLaVA
    backbones). `validation` is scored at every checkpoint on its first `validation_limit` samples;
    a stage ends with the weights of the checkpoint that is highest in `metric`. Without it, with
    the last. `dtype`: of what is loaded and not trained, and of the result's files (float32: they
    are float16); what is trained is float32. `features`: a folder in which what frozen encoders
    make of each picture is kept, so that it is computed once (for small sets). `checkpointing`:
    layers of the language model are computed again in the backward pass instead of kept (less
    memory). `shard`: every process holds a part of each weight, gradient and optimizer state
    (FSDP); for models that do not fit otherwise. `products`: attention as plain products, faster
    for small transformers on CPU (`attention.py`).
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
                "shard: true goes without features and validation; score the model when it is "
                "whole again"
            )
        if self.shard and (
            muon := [name for name, stage in self.stages.items() if stage.optimizer != "adamw"]
        ):
            raise InputError(
                f"shard: true needs optimizer: adamw; stage {muon[0]} has muon, which works on "
                "whole matrices"
            )
        if self.dtype == "bfloat16" and not self.bf16:
            raise InputError(
                "dtype: bfloat16 needs bf16: true, which lets float32 and bfloat16 weights work "
                "together"
            )


def read_run(file: str | Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """A config file with overrides laid over it. Raises `InputError` with the place and the
    nearest name.
    """
    return parse(TrainSettings, read(file, overrides))
