import io

import numpy as np
import pytest
from PIL import Image

from reasonseg import InputError
from reasonseg.structures.images import atomic_write, read_image
from reasonseg.structures.mask_values import read_mask

GREY = Image.fromarray(np.tile(np.arange(0, 250, 10, dtype=np.uint8), (20, 1)))  # 20 x 25


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_reads(mode, tmp_path):
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    elif mode == "P":
        picture = GREY.convert("RGB").quantize(64)
    else:
        picture = (
            GREY.convert("RGB").convert(mode) if mode not in ("L", "1") else GREY.convert(mode)
        )
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    image = read_image(path)
    assert image.shape == (20, 25, 3) and image.dtype == np.uint8
    if mode not in ("1",):
        assert np.abs(image[..., 0].astype(int) - np.asarray(GREY)).max() <= 12


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.bmp", "a.tiff"])
def test_formats_and_first_frames(name, tmp_path):
    frames = [GREY.convert("RGB"), Image.new("RGB", GREY.size, "red")]
    extra = {"save_all": True, "append_images": frames[1:]} if name[2:] in ("gif", "webp") else {}
    frames[0].save(tmp_path / name, **extra)
    image = read_image(tmp_path / name)
    assert (
        image.shape == (20, 25, 3) and np.abs(image.astype(int) - np.asarray(frames[0])).mean() < 8
    )


@pytest.mark.parametrize("size", [(1, 1), (1400, 30), (3, 900)])
def test_odd_sizes(size, tmp_path):
    Image.new("RGB", size, "blue").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    GREY.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (25, 20, 3)
    assert image[0, 0, 0] < image[-1, 0, 0]


def test_transparency_is_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "0 bytes"),
        (b"hello", "not an image"),
        (jpeg()[:1500], "damaged or cut off"),
        (jpeg()[:20], "not an image|damaged"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
    ],
)
def test_broken_files_are_named(content, words, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_image(tmp_path / "a.jpg")
    assert "a.jpg" in str(caught.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match="100 million pixels"):
        read_image(tmp_path / "big.png")


def test_masks_of_any_kind(tmp_path):
    truth = np.zeros((8, 9), bool)
    truth[2:5, 3:7] = True
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / "a.png")
    Image.fromarray(truth).save(tmp_path / "b.png")
    indexed = Image.fromarray(truth.astype(np.uint8)).convert("P")
    indexed.putpalette([255, 255, 255, 0, 0, 0])
    indexed.save(tmp_path / "c.png")
    Image.fromarray(
        np.dstack([np.full((8, 9, 3), 200, np.uint8), truth.astype(np.uint8) * 255])
    ).save(tmp_path / "d.png")
    for name in "abcd":
        assert (read_mask(tmp_path / f"{name}.png") == truth).all(), name


def test_written_aside_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_write(path) as aside:
        aside.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old" and [p.name for p in tmp_path.iterdir()] == [
        "a.txt"
    ]
