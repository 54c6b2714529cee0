"""Annotations of another size: scaled, turned, or refused."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from reasonseg import InputError
from reasonseg.structures.placing import Frame, placing
from reasonseg.structures.polygons import placed_mask


def picture(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).save(
        file, "PNG", exif=exif
    )
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_stored_pixels_is_turned_with_them(orientation):
    data = picture((30, 40), orientation)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    frame, said = Frame.of(data), []
    assert frame.size == shown.shape and frame.stored == (30, 40)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    if orientation in (5, 6, 7, 8):
        found = placing((30, 40), frame, "a.json", said.append).mask(stored)
        assert np.array_equal(found, shown) and "turned as its EXIF" in said[0]
        square = [[2, 3, 10, 3, 10, 9, 2, 9]]
        on = placing((30, 40), frame, "a.json", said.append)
        drawn = placed_mask(square, "a.json", on, said.append)
        flat = placing((30, 40), Frame((30, 40)), "a.json", said.append)
        assert np.array_equal(drawn, on.finished(placed_mask(square, "", flat, said.append)))


def test_a_resized_image_scales_its_annotation():
    said: list[str] = []
    on = placing((60, 80), Frame((30, 40)), "a.json", said.append)
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:60] = True
    assert on.mask(mask).sum() == 200 and "scaled by 0.5" in said[0]
    assert placed_mask([[20, 10, 60, 10, 60, 30, 20, 30]], "", on, said.append).sum() == 200


def test_a_turned_and_resized_image():
    said: list[str] = []
    on = placing((60, 80), Frame((40, 30), 6), "a.json", said.append)
    mask = np.zeros((60, 80), bool)
    mask[:10, :20] = True  # the upper left corner becomes the upper right one
    assert on.mask(mask)[:10, -5:].all() and on.mask(mask).sum() == 50


@pytest.mark.parametrize("annotated", [(48, 60), (30, 41), (5, 5), (64, 48)])
def test_what_nothing_explains_is_refused(annotated):
    with pytest.raises(InputError, match="neither one scale nor an EXIF"):
        placing(annotated, Frame((48, 64)), "a.json", print)


def test_an_upright_mask_of_a_turned_image_stays_upright():
    said: list[str] = []
    on = placing((201, 200), Frame((402, 400), 6), "a.json", said.append)
    assert on.turn == 1 and "scaled by 2" in said[0]
