"""Weight files of others, read frugally: shard by shard, memory-mapped, and nothing that could
run code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from reasonseg.errors import InputError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
PARALLEL = "module."


class Shards:
    """The tensors of a checkpoint: one file, or a folder's file or shards.

    `items()` goes through shard by shard and keeps one open; `tensor(key)` fetches a single one.
    Raises `InputError` naming the file where one is missing, cut short, or holds anything but
    tensors.
    """

    def __init__(self, source: str | Path):
        self.source = Path(source)
        self.of: dict[str, Path] = {}  # the file of each key
        index = self._index()
        for file in [self.source] if self.source.is_file() else self._files(index):
            for key in _keys(file):
                self.of[key] = file
        if index:
            lacking = [key for key in index if key not in self.of]
            if lacking:
                raise InputError(
                    f"{self.source / index[lacking[0]]}: the index promises {lacking[0]} and "
                    f"{len(lacking) - 1} more, "
                    "which are not in it; fetch the shard again"
                )
        # torch's DistributedDataParallel puts it before every key
        parallel = bool(self.of) and all(key.startswith(PARALLEL) for key in self.of)
        self.prefix = PARALLEL if parallel else ""
        self.of = {key.removeprefix(self.prefix): file for key, file in self.of.items()}
        self._open: tuple[Path, dict] | None = None

    def _index(self) -> dict[str, str]:
        for name in INDEXES:
            file = self.source / name
            if file.is_file():
                try:
                    return json.loads(file.read_text(encoding="utf-8"))["weight_map"]
                except (ValueError, KeyError) as error:
                    raise InputError(f"{file} is not a weight index: {error!r}") from None
        return {}

    def _files(self, index: dict[str, str]) -> list[Path]:
        if index:
            files = [self.source / name for name in dict.fromkeys(index.values())]
            missing = [f.name for f in files if not f.is_file()]
            if missing:
                raise InputError(
                    f"{self.source}: the index names {', '.join(missing)}, which is not there"
                )
            return files
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.source / name).is_file():
                return [self.source / name]
        raise InputError(
            f"{self.source} has no model.safetensors, no pytorch_model.bin and no index of either"
        )

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor, memory-mapped."""
        file = self.of[key]
        if self._open is None or self._open[0] != file:
            self._open = file, _read(file)
        return self._open[1][self.prefix + key]

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every key with its tensor, a shard after the other."""
        for file in dict.fromkeys(self.of.values()):
            for key in [k for k, f in self.of.items() if f == file]:
                yield key, self.tensor(key)
        self._open = None

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, its values unread."""
        file = self.of[key]
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return tuple(opened.get_slice(self.prefix + key).get_shape())
        return tuple(self.tensor(key).shape)


def _keys(file: Path) -> list[str]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                return list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(_broken(file, error)) from None
    return list(_read(file))


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=_zipped(file))
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error):
            raise InputError(
                f"{file} holds more than tensors (its pickle names code to run); only plain state "
                "dicts are read"
            ) from None
        raise InputError(_broken(file, error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(_broken(file, error)) from None
    # how some training scripts wrap it
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(
        isinstance(v, torch.Tensor) for v in tensors.values()
    ):
        raise InputError(f"{file} is not a state dict: expected names with tensors")
    return tensors


def _zipped(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def _broken(file: Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return (
        f"{file} ({file.stat().st_size} bytes) cannot be read, it may be cut short: {first}; "
        "fetch it again"
    )
