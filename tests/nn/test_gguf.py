"""GGUF files: our reader against values written by hand, and damaged files."""

import struct

import numpy as np
import pytest
import torch

from reasonseg.errors import InputError
from reasonseg.nn.gguf import F16, F32, Q4_1, Q8_0, Gguf


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def write(path, tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF file with some metadata and these tensors (shape, type, data)."""
    pairs = [
        text("general.name") + struct.pack("<I", 8) + text("tiny"),
        text("a.number") + struct.pack("<If", 6, 0.5),
        text("a.list") + struct.pack("<IIQ", 9, 4, 3) + struct.pack("<3I", 1, 2, 3),
        text("a.words") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("yz"),
    ]
    table, data = b"", b""
    for name, (shape, kind, raw) in tensors.items():
        table += text(name) + struct.pack("<I", len(shape))
        table += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        table += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + table
    whole = head + b"\0" * (-len(head) % 32) + data
    path.write_bytes(whole)
    return whole


@pytest.fixture
def stored():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(3, 32)).astype("<f4")
    half = rng.normal(size=(2, 5)).astype("<f2")
    nibbles = rng.integers(0, 16, (2, 32), np.uint8)
    scales = np.array([[0.5, -1.0], [0.25, 2.0]], "<f2")
    packed = b"".join(
        scales[i].tobytes() + (nibbles[i, :16] | nibbles[i, 16:] << 4).astype(np.uint8).tobytes()
        for i in range(2)
    )
    bytes_ = rng.integers(-128, 128, (2, 32)).astype(np.int8)
    eights = b"".join(np.float16(0.125).tobytes() + bytes_[i].tobytes() for i in range(2))
    tensors = {
        "plain": ((3, 32), F32, plain.tobytes()),
        "half": ((2, 5), F16, half.tobytes()),
        "four": ((2, 32), Q4_1, packed),
        "eight": ((64,), Q8_0, eights),
    }
    values = {
        "plain": plain,
        "half": half.astype(np.float32),
        "four": nibbles * scales[:, :1].astype(np.float32) + scales[:, 1:].astype(np.float32),
        "eight": (bytes_ * 0.125).reshape(64),
    }
    return tensors, values


def test_every_type_is_read(tmp_path, stored):
    tensors, values = stored
    write(tmp_path / "a.gguf", tensors)
    file = Gguf.open(tmp_path / "a.gguf")
    assert file.metadata == {
        "general.name": "tiny", "a.number": 0.5, "a.list": [1, 2, 3], "a.words": ["x", "yz"],
    }  # fmt: skip
    weights = file.weights()
    assert {n: tuple(w.shape) for n, w in weights.items()} == {n: t[0] for n, t in tensors.items()}
    for name, value in values.items():
        assert torch.equal(weights[name], torch.from_numpy(np.float32(value))), name
    assert file.weights(torch.bfloat16)["plain"].dtype == torch.bfloat16


def test_damaged_files_are_one_line(tmp_path, stored):
    whole = write(tmp_path / "a.gguf", stored[0])
    bad = tmp_path / "b.gguf"
    for cut in range(0, len(whole) - 32, 7):  # the end is padding
        bad.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="b.gguf"):
            Gguf.open(bad).weights()
    bad.write_bytes(b"NOPE" + whole[4:])
    with pytest.raises(InputError, match="does not begin with GGUF"):
        Gguf.open(bad)
    write(bad, {"odd": ((32,), 14, b"\0" * 64)})
    with pytest.raises(InputError, match="type 14"):
        Gguf.open(bad).weights()
