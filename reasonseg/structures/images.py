"""Reads image files as a viewer shows them, and writes files atomically."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reasonseg.errors import InputError

if TYPE_CHECKING:
    from PIL import Image as PILImage

log = logging.getLogger(__name__)
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    MemoryError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
# formats of image files that are read, everywhere
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
BAND = 2**20  # pixels of an image that are converted at once
ORIENTATION = 0x0112  # the EXIF tag
MAX_SIDE = 65_535  # of a JPEG too; rows cost memory of their own
MAX_PIXELS = 100_000_000  # about 10000 x 10000; larger images are refused before decoding


def read_image(
    source: str | Path | bytes,
    pixels: int = MAX_PIXELS,
    name: str = "the image",
    remark: Callable[[str], None] | None = None,
) -> np.ndarray:
    """The image of a file as uint8 RGB `[h, w, 3]`.

    EXIF rotation is applied, transparency is put on white, and only the first frame is read. Values
    of other ranges are scaled to 0..255 (`scaled_values`), and `remark` is called with a sentence
    that says so; without it the sentence is logged. `source` is a path or the bytes of a file;
    errors call bytes `name`. Raises `InputError` where the file is missing, unreadable, truncated
    or has more than `pixels` pixels.
    """
    with open_image(source, pixels, name) as picture:
        picture = upright(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            try:
                grey, said = scaled_values(np.asarray(picture))
            except ValueError as error:
                raise InputError(f"{_called(source, name)}: {error}") from None
            if said:
                (remark or log.warning)(f"{_called(source, name)}: {said}")
            return np.repeat(grey[..., None], 3, 2)
        return _rgb(picture)


def upright(picture: PILImage.Image) -> PILImage.Image:
    """A PIL image turned as its EXIF orientation says."""
    from PIL import ImageOps

    turned = picture.getexif().get(ORIENTATION, 1) not in (0, 1)
    return ImageOps.exif_transpose(picture) if turned else picture


def _rgb(picture: PILImage.Image) -> np.ndarray:
    """A PIL image as uint8 RGB `[h, w, 3]`, transparency on white; a band of rows at a time.

    Bands bound the memory, and the time in which no other thread can run.
    """
    from PIL import Image

    width, height = picture.size
    rgb = np.empty((height, width, 3), np.uint8)
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    rows = max(BAND // max(width, 1), 1)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        if transparent:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        rgb[top : top + rows] = np.asarray(band.convert("RGB"))
    return rgb


def scaled_values(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values `[h, w]` of any range as uint8 grey, and a sentence about the scale.

    Integers up to 255 stay as they are; larger ones are scaled by the smallest of 10, 12, 14, 16 or
    32 bits that holds them. Of floats, 0..1 and 0..255 are scaled by that range, all others by
    their own. Values that are not finite become 0. Raises `ValueError` where no value is finite.
    """
    if values.dtype.kind != "f" and values.min(initial=0) >= 0:
        top = int(values.max(initial=0))
        bits = next(b for b in (8, 10, 12, 14, 16, 32) if top < 2**b)
        grey = values * np.float32(255 / (2**bits - 1)) + np.float32(0.5)
        said = f"values of {bits} bits are scaled to 8" if bits not in (8, 16) else ""
        return grey.astype(np.uint8), said
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no value of the image is a finite number")
    low, high = float(values[finite].min()), float(values[finite].max())
    if low >= 0 and high <= 255:
        start, end = 0.0, 1.0 if high <= 1 else 255.0
    else:
        start, end = low, max(high, low + 1e-12)
    grey = np.where(finite, values, start).astype(np.float64 if values.itemsize > 4 else np.float32)
    grey -= start
    grey *= 255 / (end - start)
    np.clip(grey, 0, 255, out=grey)
    grey += 0.5
    said = f"values from {low:g} to {high:g} are scaled: {start:g} is black, {end:g} white"
    return grey.astype(np.uint8), said


def _called(source: str | Path | bytes, name: str) -> str:
    return name if isinstance(source, bytes) else str(source)


def read_values(
    source: str | Path | bytes,
    pixels: int = MAX_PIXELS,
    name: str = "the image",
    colours: bool = False,
) -> np.ndarray:
    """The values of an image file as they are stored, `[h, w]` or `[h, w, channels]`.

    Of an indexed image they are the indices, or with `colours` its colours, `[h, w, 3]`. Raises
    `InputError` as `open_image` does.
    """
    with open_image(source, pixels, name) as picture:
        return np.array(picture.convert("RGB") if colours else picture)


def formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names: those of `FORMATS` that it decodes itself.

    Pillow knows about 40 more; some of them start other programs (EPS runs Ghostscript).
    """
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def open_image(
    source: str | Path | bytes,
    pixels: int = MAX_PIXELS,
    name: str = "the image",
    decode: bool = True,
) -> Iterator[PILImage.Image]:
    """The PIL image of a file, with its own mode and values; the only place that opens images.

    Args:
        source: A path, or the bytes of a file.
        pixels: An image with more is refused before it is decoded.
        name: What errors call bytes.
        decode: Off: only the header is read.

    Yields:
        The image, open until the block ends.

    Raises:
        InputError: The file is missing, of another format, damaged, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, bytes):
        path, file, size = name, io.BytesIO(source), len(source)
    else:
        path = file = Path(source)
        size = _bytes_of(path)
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes)")
    try:
        with Image.open(file, formats=formats()) as picture:
            width, height = picture.size
            if max(width, height) > MAX_SIDE:
                raise InputError(
                    f"{path} is {width}x{height}; no side may be longer than {MAX_SIDE} pixels"
                )
            if width * height > pixels:
                raise InputError(
                    f"{path} is {width}x{height}, more than the {pixels / 1e6:g} million pixels "
                    "read; make it smaller"
                )
            if decode:
                picture.load()
            yield picture
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not an image that can be read; "
            "give a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
        ) from None
    except InputError:
        raise
    except Image.DecompressionBombError:  # PIL's own check, at twice its limit
        raise InputError(
            f"{path} has more than the {pixels / 1e6:g} million pixels read; make it smaller"
        ) from None
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be decoded ({error}); is the file damaged or cut off?"
        ) from None


def _bytes_of(path: Path) -> int:
    """The size of an image file. Raises `InputError` where it cannot be opened."""
    try:
        about = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # too long a name, or a character that none may have
        raise InputError(f"{str(path)[:200]!r} cannot be opened: {error}") from None
    if stat.S_ISDIR(about.st_mode):
        raise InputError(f"{path} is a folder; name an image file in it")
    return about.st_size


def make_folder(folder: str | Path) -> Path:
    """Makes a folder to write to, and returns its path.

    Raises `InputError` where its path, or one above it, is a file, or cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is a file, or lies below one; name a folder") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`. It is renamed to `path` at the end, or removed on an error.

    Readers therefore never see a file that is only partly written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
