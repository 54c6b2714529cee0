"""What a released format is, and how the one of a checkpoint is found: by what its files hold,
never by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released.files import Shards
from reasonseg.config.kinds import kind_module, kinds
from reasonseg.errors import InputError


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is read. `dtype` None keeps every tensor as it is stored; the rest is as
    in `from_pretrained`.
    """

    device: torch.device
    dtype: torch.dtype | None
    quantization: str | None = None
    clip: str | None = None
    sam: str | None = None
    template: str | None = None
    read: str | None = None
    allow: tuple[str, ...] = ()

    def refuse(self, place: Path, *names: str, why: str) -> None:
        """Raises `InputError` where one of these options was given."""
        if given := [name for name in names if getattr(self, name) is not None]:
            raise InputError(f"{place}: {given[0]} {why}, leave it out")


@dataclass(frozen=True)
class Format:
    """A released format. A file in this folder defines one as `FORMAT`; nothing else has to know of
    it.

    `recognise(place)` gives what `read(found, options)` takes, or None where a folder or file is
    something else. `names` says what people call such checkpoints. `original_sam(found)` gives the
    files and original names of the SAM inside, for `import --verify`; None where there is none.
    """

    names: str
    recognise: Callable[[Path], Any]
    read: Callable[[Any, LoadOptions], Parts]
    original_sam: Callable[[Any], tuple[Shards, dict[str, str]]] | None = None


def formats() -> dict[str, Format]:
    """Every format, by the name of its file."""
    return {
        name: kind_module("checkpoints.released", name).FORMAT
        for name in kinds("checkpoints.released")
    }


def find_format(place: Path) -> tuple[Format, Any]:
    """The format of a checkpoint, and what it recognised. Raises `InputError` where no format
    knows it.
    """
    known = formats().values()
    for format_ in known:
        if (found := format_.recognise(place)) is not None:
            return format_, found
    listed = "; ".join(format_.names for format_ in known)
    raise InputError(
        f"{place} is no model we know: it has no settings.yaml (ours) and none of the released "
        f"layouts ({listed})"
    )
