"""What a prompter is. One file a kind: its `Config`, and a class that makes a `Prompt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from reasonseg.nn.cache import ImageCache
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.prompt import Prompt
from reasonseg.nn.shapes import Bool, Float
from reasonseg.structures.query import Reference

# an image that is asked about, and references of one label
Group = tuple[np.ndarray, list[Reference]]
Makes = Literal["tokens", "examples"]


class Weights(Protocol):
    """What every prompter offers of its weights; modules of torch have all but `learned`."""

    def learned(self) -> dict[str, Tensor]:
        """The weights that are saved beside the settings."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> nn.Module: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(
        self, state_dict: Any, strict: bool = True, assign: bool = False
    ) -> Any: ...


@runtime_checkable
class Prompter(Weights, Protocol):
    """Turns states of a language model into prompt tokens. The `Config` of its file builds it.

    Attributes:
        config: Its settings; `config.at` says which state of `<SEG>` it reads.
        makes: What it makes, which the decoder has to take.
    """

    config: Any
    makes: Makes

    @property
    def width_in(self) -> int:
        """Width of the states it reads."""
        ...

    @property
    def width_out(self) -> int:
        """Width of the tokens it makes; 0 where it makes examples."""
        ...

    def __call__(self, states: Float[Tensor, "n width_in"]) -> Prompt:
        """Makes one prompt for each state.

        Args:
            states: `[n, width_in]`, one for each `<SEG>` in the order of the text.

        Returns:
            A prompt of tokens `[n, k, width_out]`.
        """
        ...


@runtime_checkable
class ReferencePrompter(Weights, Protocol):
    """Turns annotated images into prompts: tokens (`vlp`), or examples for a decoder that learns
    in context (`examples`).

    Attributes:
        config: Its settings.
        makes: What it makes, which the decoder has to take.
    """

    config: Any
    makes: Makes

    @property
    def width_out(self) -> int:
        """Width of the tokens it makes; 0 where it makes examples."""
        ...

    def bind(self, backbone: Any, decoder: Any) -> None:
        """Takes what it needs of the backbone and the decoder of its model.

        Args:
            backbone: The model's backbone, or None.
            decoder: The model's decoder.

        Raises:
            InputError: They lack what this prompter needs.
        """
        ...

    def prompts(
        self, groups: Sequence[Group], cache: ImageCache, owners: Sequence[int] | None = None
    ) -> list[Prompt]:
        """Makes one prompt (n = 1) for each group.

        Args:
            groups: Pairs of an image that is asked about and references of one label.
            cache: Keeps patch features of images, by their pixels and the encoder's weights.
            owners: For each group the number of its question; None: each is one of its own.

        Returns:
            The prompts, in the order of the groups.
        """
        ...

    @property
    def patch_encoder(self) -> PatchEncoder:
        """What it compares images by; see `PatchEncoder`."""
        ...

    def placed(self, features: Float[Tensor, "*b c"]) -> Float[Tensor, "*b e"]:
        """Patch features `[..., c]` as unit vectors `[..., e]`, in the space where images are
        compared.
        """
        ...

    def frame(self, mask: Bool[np.ndarray, "h w"]) -> Tensor:
        """A mask in the square frame in which the prompter reads its image, `[s, s]`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what needs a folder of its own; nothing where all is in `learned`."""
        ...
