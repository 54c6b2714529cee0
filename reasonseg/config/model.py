"""The settings of a model: its components and their kinds.

They are saved as `settings.yaml` beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from reasonseg.config.schema import Kind, Room
from reasonseg.errors import InputError


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses. The defaults are LISA's; `iou` trains the predicted score."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    iou: float = 0.0


@dataclass(frozen=True)
class ModelSettings:
    """The settings of one model.

    `backbone` with its `prompter` reads text, `references` reads reference images; a model has one
    of them, or both. `refiner` sharpens masks on request. `segmenter` None means `embedding`.
    `score`: `predicted` (the IoU head) where the decoder's IoU head was trained, else `foreground`
    (mean foreground probability). `doubt`: an answer in words whose best mask has a lower score
    (0..1) than this is `absent`. `closer`: a box alone is also drawn from near, in a cut of so many
    sides of the box (0: no), and both in a mirror. `one_piece`: a click alone marks one connected
    piece. `english_only`: questions that are surely in another language are
    refused. `memory`: number of earlier turns of a conversation that the
    model reads. `notice`: printed once to users of the command line. `new_markers`: `<SEG>` and
    `<REJ>` are new embedding rows, which must be trained. `about`: how the model was made, for
    people only. Raises `InputError` where components are missing.
    """

    decoder: Annotated[Kind, Room("decoders")]
    backbone: Annotated[Kind, Room("backbones")] | None = None
    prompter: Annotated[Kind, Room("prompters")] | None = None
    references: Annotated[Kind, Room("prompters")] | None = None
    refiner: Annotated[Kind, Room("decoders")] | None = None
    segmenter: Annotated[Kind, Room("segmenters")] | None = field(default=None, repr=False)
    score: Literal["predicted", "foreground"] = "foreground"
    loss: LossWeights = field(default_factory=LossWeights)
    doubt: float = 0.0
    closer: float = 0.0
    one_piece: bool = False
    english_only: bool = False
    max_new_tokens: int = 64
    memory: int = 8
    notice: str = ""
    new_markers: bool = field(default=False, repr=False)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.closer and self.closer < 1:
            raise InputError(f"closer: {self.closer} cuts into the box; write 1 or more, or 0")
        if (self.backbone is None) != (self.prompter is None):
            raise InputError(
                "a backbone needs a prompter that reads it, and a prompter needs a backbone; give "
                "both or neither"
            )
        if self.backbone is None and self.references is None:
            raise InputError(
                "a model needs a backbone with its prompter (for text), references (for "
                "reference images), or all of them"
            )
