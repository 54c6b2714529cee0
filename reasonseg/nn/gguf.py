"""Reads weights and vocabulary of a GGUF file: its metadata, and tensors in F32, F16, Q8_0 and
Q4_1.

A GGUF file has little-endian metadata (typed values by name), a table of tensors, and their data.
Q4_1 stores 32 values as a float16 scale d, a float16 minimum m and 16 bytes of 4-bit numbers q; a
value is d * q + m. Q8_0 stores a float16 scale d and 32 signed bytes; a value is d * q.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonseg.errors import InputError

MAGIC = b"GGUF"
# struct codes of scalar types by number; 8 is a text, 9 a list
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, LIST = 8, 9
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
BLOCK = 32  # values of a quantized block
BYTES = {F32: (1, 4), F16: (1, 2), Q4_1: (BLOCK, 20), Q8_0: (BLOCK, 34)}  # values, bytes a block


@dataclass(frozen=True)
class Gguf:
    """A GGUF file: `metadata` by name, and for each tensor (shape, type, offset in the file)."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]

    @classmethod
    def open(cls, path: Path) -> Gguf:
        """Reads metadata and the table of tensors. Raises `InputError` for another format or a
        file that is cut short.
        """
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                return cls(path, *_Head(data).read())
        except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{path} is no GGUF file that can be read ({error})") from None

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """All tensors by name, dequantized. Raises `InputError` for a type that is not known."""
        with self.path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return {
                name: self._tensor(name, np.frombuffer(data, np.uint8)).to(dtype)
                for name in self.tensors
            }

    def _tensor(self, name: str, data: np.ndarray) -> torch.Tensor:
        shape, kind, start = self.tensors[name]
        if kind not in BYTES:
            raise InputError(f"{self.path}: tensor {name} has type {kind}, which is not known")
        values, size = BYTES[kind]
        blocks = int(np.prod(shape)) // values
        if start + blocks * size > len(data):
            raise InputError(f"{self.path} is cut short: tensor {name} is not whole")
        raw = data[start : start + blocks * size].reshape(blocks, size)
        return torch.from_numpy(_dequantized(raw, kind)).reshape(shape)


def _dequantized(raw: np.ndarray, kind: int) -> np.ndarray:
    """float32 values of blocks `[n, bytes]`."""
    if kind in (F32, F16):
        plain = np.ascontiguousarray(raw).view("<f4" if kind == F32 else "<f2")
        return plain.astype(np.float32)
    scale = np.ascontiguousarray(raw[:, :2]).view("<f2").astype(np.float32)
    if kind == Q8_0:
        return scale * np.ascontiguousarray(raw[:, 2:]).view(np.int8)
    least = np.ascontiguousarray(raw[:, 2:4]).view("<f2").astype(np.float32)
    packed = raw[:, 4:]
    values = np.empty((len(raw), BLOCK), np.float32)
    values[:, : BLOCK // 2] = packed & 15
    values[:, BLOCK // 2 :] = packed >> 4
    values *= scale
    values += least
    return values


class _Head:
    """Reads what stands before the tensors' data."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]]]:
        if self.data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self.at = 8
        count, pairs = self.scalars("Q", 2)
        metadata = {self.text(): self.value(self.scalar("I")) for _ in range(pairs)}
        table = {}
        for _ in range(count):
            name, dimensions = self.text(), self.scalar("I")
            shape = tuple(reversed(self.scalars("Q", dimensions)))
            kind, offset = self.scalar("I"), self.scalar("Q")
            table[name] = shape, kind, offset
        aligned = metadata.get("general.alignment", 32)
        start = -(-self.at // aligned) * aligned
        return metadata, {n: (s, kind, start + o) for n, (s, kind, o) in table.items()}

    def scalars(self, code: str, count: int) -> tuple:
        found = struct.unpack_from(f"<{count}{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{code}")
        return found

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def text(self) -> str:
        length = self.scalar("Q")
        self.at += length
        if self.at > len(self.data):
            raise ValueError("a text is cut short")
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            return self.scalar(SCALARS[kind])
        inside, count = self.scalar("I"), self.scalar("Q")
        if inside in SCALARS:
            return list(self.scalars(SCALARS[inside], count))
        return [self.value(inside) for _ in range(count)]
