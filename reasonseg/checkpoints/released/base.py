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

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes; pointers have about 130


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


def refuse_pointers(place: Path) -> None:
    """Raises `InputError` where a weight file is only the pointer that git has without Git LFS."""
    files = [place] if place.is_file() else sorted(place.glob("*"))
    for file in files:
        if file.is_file() and file.stat().st_size < POINTER_SIZE:
            with file.open("rb") as opened:
                start = opened.read(len(POINTER))
            if start == POINTER:
                raise InputError(
                    f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its "
                    "folder, or download the file"
                )


def find_format(place: Path) -> tuple[Format, Any]:
    """The format of a checkpoint, and what it recognised. Raises `InputError` where no format
    knows it.
    """
    refuse_pointers(place)
    known = formats().values()
    for format_ in known:
        if (found := format_.recognise(place)) is not None:
            return format_, found
    if place.is_dir() and (place / "adapter_config.json").is_file():
        raise InputError(
            f"{place} holds a LoRA adapter only (adapter_config.json), without its model; merge it "
            "into the model (peft: merge_and_unload, then save_pretrained), and name that folder"
        )
    listed = "; ".join(format_.names for format_ in known)
    raise InputError(
        f"{place} is no model we know: it has no settings.yaml (ours) and none of the released "
        f"layouts ({listed})"
    )
