"""Label Studio's run-length encoding of painted masks ("brush").

A stream of bits: 32 for the number of values, 5 for the size of a value less one, four times 4 for
the sizes of run lengths less one; then runs of one bit (the same value, or several), two bits
(which of the four sizes), the length less one, and the value or the values. The values are those of
the four channels of each pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.images import MAX_PIXELS

VALUE, LENGTHS = 8, (3, 4, 8, 16)  # sizes in bits that Label Studio writes
CHANNELS = 4


def encode(mask: np.ndarray) -> list[int]:
    """The encoding of a mask (bool `[h, w]`) as bytes 0..255: 255 in the mask, else 0."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}", f"{VALUE - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in LENGTHS]
    value = bool(flat[0]) if flat.size else False
    for length in lengths.tolist():
        while length:
            size = next((s for s in LENGTHS if length <= 2**s), LENGTHS[-1])
            part = min(length, 2**size)
            bits.append(f"1{LENGTHS.index(size):02b}{part - 1:0{size}b}{255 * value:08b}")
            length -= part
        value = not value
    text = "".join(bits)
    packed = np.frombuffer(text.encode(), np.uint8) - ord("0")
    return np.packbits(packed).tolist()


def decode(data: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The mask of an encoding, bool `[h, w]`, for an image of `size` (height, width).

    Raises `InputError` where it is damaged or of another size.
    """
    height, width = size
    if height * width > MAX_PIXELS or not all(type(v) is int and 0 <= v < 256 for v in data):
        raise InputError("a brush mask is too large, or no list of bytes")
    text = "".join(f"{byte:08b}" for byte in data)
    count, at = int(text[:32] or "0", 2), 53
    if count != height * width * CHANNELS or len(text) < at:
        raise InputError(
            f"a brush mask has {count // CHANNELS} pixels, its image {height * width}; is it cut?"
        )
    word = int(text[32:37], 2) + 1
    sizes = [int(text[k : k + 4], 2) + 1 for k in range(37, 53, 4)]
    values, filled = np.zeros(count, bool), 0
    while filled < count:
        if at + 3 > len(text):
            raise InputError("a brush mask is cut off")
        same, bits = text[at] == "1", sizes[int(text[at + 1 : at + 3], 2)]
        length = int(text[at + 3 : at + 3 + bits] or "0", 2) + 1
        at += 3 + bits
        end = min(filled + length, count)
        if same:
            values[filled:end] = "1" in text[at : at + word]
            at += word
        else:
            for k in range(filled, end):
                values[k] = "1" in text[at : at + word]
                at += word
        filled = end
    return values.reshape(height, width, CHANNELS)[..., -1]
