"""The state of the language model around `<SEG>` becomes one prompt token (LISA, "embedding as
mask").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from reasonseg.nn.prompt import Prompt
from reasonseg.nn.shapes import Float
from reasonseg.prompters.base import Makes


@dataclass(frozen=True)
class Config:
    """`at`: read the state that predicts `<SEG>` (LISA's rule), or the one at it."""

    at: Literal["predicting", "at"] = "predicting"
    width_in: int = 0  # of the backbone's states; 0 asks the backbone
    width_out: int = 0  # of the decoder's tokens; 0 asks the decoder

    def build(self) -> SegToken:
        """A prompter with fresh weights."""
        return SegToken(self)

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests."""
        return cls(width_in=32, width_out=16)


class SegToken(nn.Module):
    """Linear - ReLU - Linear on one state per `<SEG>`."""

    makes: Makes = "tokens"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.mlp = nn.Sequential(
            nn.Linear(config.width_in, config.width_in),
            nn.ReLU(),
            nn.Linear(config.width_in, config.width_out),
        )

    @property
    def width_in(self) -> int:
        """Width of the states it reads."""
        return self.config.width_in

    @property
    def width_out(self) -> int:
        """Width of the tokens it makes."""
        return self.config.width_out

    def forward(self, states: Float[Tensor, "n width_in"]) -> Prompt:
        """States `[n, width_in]`, one for each `<SEG>` in the order of the text, to tokens `[n,
        1, width_out]`.
        """
        return Prompt(self.mlp(states)[:, None])

    def learned(self) -> dict[str, Tensor]:
        """The weights that are saved beside the settings: all of them."""
        return self.state_dict()
