"""The settings of a model: which kinds stand in its rooms. Saved as `settings.yaml` beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from reasonseg.config import Kind, Room


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts. The defaults are LISA's; `iou` trains the decoder's own score."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    iou: float = 0.0


@dataclass(frozen=True)
class ModelSettings:
    """One model. `score`: `predicted` where the decoder's IoU head was trained, else `foreground` probability."""

    backbone: Annotated[Kind, Room("backbones")]
    prompter: Annotated[Kind, Room("prompters")]
    decoder: Annotated[Kind, Room("decoders")]
    score: Literal["predicted", "foreground"] = "foreground"
    loss: LossWeights = field(default_factory=LossWeights)
    max_new_tokens: int = 64
    notice: str = ""  # said once to whoever uses the model from the command line
    about: dict[str, Any] = field(default_factory=dict)  # how it was made
