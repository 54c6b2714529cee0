"""The settings of a model: which kinds stand in its rooms. Saved as `settings.yaml` beside the
weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from reasonseg.config.schema import Kind, Room
from reasonseg.errors import InputError


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts. The defaults are LISA's; `iou` trains the decoder's own score."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    iou: float = 0.0


@dataclass(frozen=True)
class ModelSettings:
    """One model. `backbone` and its `prompter` take words, `references` take examples; a model has
    one of them, or both.

    `score`: `predicted` where the decoder's IoU head was trained, else `foreground` probability.
    """

    decoder: Annotated[Kind, Room("decoders")]
    backbone: Annotated[Kind, Room("backbones")] | None = None
    prompter: Annotated[Kind, Room("prompters")] | None = None
    references: Annotated[Kind, Room("prompters")] | None = None
    refiner: Annotated[Kind, Room("decoders")] | None = None  # sharpens masks where it is asked to
    # None: embedding
    segmenter: Annotated[Kind, Room("segmenters")] | None = field(default=None, repr=False)
    score: Literal["predicted", "foreground"] = "foreground"
    loss: LossWeights = field(default_factory=LossWeights)
    max_new_tokens: int = 64
    memory: int = 8  # earlier turns of a conversation that the model reads
    notice: str = ""  # said once to whoever uses the model from the command line
    # `<SEG>` and `<REJ>` are fresh rows, which a training must teach
    new_markers: bool = field(default=False, repr=False)
    # how it was made; for people, nothing reads it
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.backbone is None) != (self.prompter is None):
            raise InputError(
                "a backbone needs a prompter that reads it, and a prompter needs a backbone; give "
                "both or neither"
            )
        if self.backbone is None and self.references is None:
            raise InputError(
                "a model needs a backbone with its prompter (for words), references (for "
                "examples), or all of them"
            )
