"""What a prompter is. One file a kind: its `Config`, and a class that makes a `Prompt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from reasonseg.nn.cache import ImageCache
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.prompt import Prompt
from reasonseg.structures.query import Reference

# an image that is asked about, and references of one thing
Group = tuple[np.ndarray, list[Reference]]


class Prompter(Protocol):
    """States of a language model to prompt tokens. The `Config` of its file builds it."""

    config: Any
    makes: Literal["tokens", "examples"]

    @property
    def width_in(self) -> int:
        """Width of the states it reads."""

    @property
    def width_out(self) -> int:
        """Width of the tokens it makes; 0 where it makes examples."""

    def __call__(self, states: torch.Tensor) -> Prompt:
        """States `[n, width_in]`, one for each `<SEG>` in the order of the text, to tokens `[n,
        k, width_out]`.
        """

    def learned(self) -> dict[str, torch.Tensor]:
        """The weights that are saved beside the settings."""

    def to(self, *args: Any, **kwargs: Any) -> nn.Module: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(
        self, state_dict: Any, strict: bool = True, assign: bool = False
    ) -> Any: ...


class ReferencePrompter(Protocol):
    """Annotated images to prompts: tokens (`vlp`), or examples for a decoder that learns in
    context (`examples`).
    """

    config: Any
    makes: Literal["tokens", "examples"]

    @property
    def width_out(self) -> int:
        """Width of the tokens it makes; 0 where it makes examples."""

    def bind(self, backbone: Any, decoder: Any) -> None:
        """Takes what it needs of its neighbours. Raises `InputError` where they lack it."""

    def prompts(
        self, groups: Sequence[Group], cache: ImageCache, owners: Sequence[int] | None = None
    ) -> list[Prompt]:
        """One prompt (n = 1) for each group; `owners` says which groups belong to one question."""

    @property
    def patch_encoder(self) -> PatchEncoder:
        """What it compares images by; see `PatchEncoder`."""

    def placed(self, features: torch.Tensor) -> torch.Tensor:
        """Patch features `[..., c]` as unit vectors, in the space where images are compared."""

    def frame(self, mask: np.ndarray) -> torch.Tensor:
        """A mask bool `[h, w]` in the square frame in which the prompter sees its image, `[s,
        s]`.
        """

    def save(self, folder: Path) -> None:
        """Writes what needs a folder of its own; nothing where all is in `learned`."""

    def learned(self) -> dict[str, torch.Tensor]:
        """The weights that are saved beside the settings."""

    def to(self, *args: Any, **kwargs: Any) -> nn.Module: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(
        self, state_dict: Any, strict: bool = True, assign: bool = False
    ) -> Any: ...
