"""What the values of masks mean: each rule, on masks as tools write them."""

import io

import numpy as np
import pytest
from PIL import Image

from reasonseg import InputError
from reasonseg.structures.mask_values import (
    Values,
    mask_values,
    named_values,
    read_mask,
    understand,
)

SIZE = (48, 64)


def areas(*values):
    """A mask with a square of 20 x 14 pixels for each value."""
    mask = np.zeros(SIZE, np.int64)
    for k, value in enumerate(values):
        mask[4 + 16 * (k // 3) : 18 + 16 * (k // 3), 1 + 21 * (k % 3) : 20 + 21 * (k % 3)] = value
    return mask


def file(values, mode="L", kind="PNG", **options):
    data = io.BytesIO()
    dtype = {"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
    picture = Image.fromarray(values.astype(dtype))
    if mode == "P":
        picture = picture.convert("P")
        picture.putpalette([v for k in range(256) for v in (k * 37 % 256, k * 91 % 256, 7)])
    picture.save(data, kind, **options)
    return data.getvalue()


def coloured(values, colours):
    image = np.zeros((*SIZE, 3), np.uint8)
    for value, colour in colours.items():
        image[values == value] = colour
    return file(image)


def soft(blur=True):
    thing = (areas(255) > 0) * np.uint8(255)
    small = Image.fromarray(thing).resize((32, 24))
    return np.asarray(small.resize((64, 48), Image.Resampling.BICUBIC)) if blur else thing


def meaning(*files, **options):
    found = Values()
    for one in files:
        found.add(*mask_values(one))
    return understand(found, "masks", **options)


@pytest.mark.parametrize(
    "data, classes, void",
    [
        (file(areas(255)), [], set()),
        (file(areas(1)), [], set()),
        (file(areas(1, 255)), [1], {255}),
        (file(areas(12, 17, 130)), [12, 17, 130], set()),
        (file(areas(1, 2, 3, 255)), [1, 2, 3], {255}),
        (file(areas(1, 255), "P"), [1], {255}),
        (file(areas(1, 2), "P"), [1, 2], set()),
        (file(areas(1, 2, 3), "I;16"), [1, 2, 3], set()),
        (file(areas(1, 255), "I;16"), [1], {255}),
        (file(areas(1, 65535), "I;16"), [1], {65535}),
        (file(areas(26001, 26002, 255), "I;16"), [255, 26001, 26002], set()),
        (file(areas(65535), "I;16"), [], set()),
        (file(areas(1, 2), "F", "TIFF"), [1, 2], set()),
        (coloured(areas(1, 2), {1: (255, 0, 0), 2: (0, 255, 0)}), [0xFF0000, 0x00FF00], set()),
        (
            coloured(areas(1, 2, 3), {1: (128, 0, 0), 2: (0, 128, 0), 3: (224, 224, 192)}),
            [0x800000, 0x008000],
            {0xE0E0C0},
        ),
        (coloured(areas(1), {1: (200, 0, 0)}), [], set()),
        (file(np.repeat(areas(255)[..., None], 3, 2)), [], set()),
    ],
)
def test_ids_and_void(data, classes, void):
    found = meaning(data)
    assert sorted(found.classes) == sorted(classes) and set(found.void) == void
    assert found.half is None


@pytest.mark.parametrize(
    "data",
    [
        file(soft()),
        file(soft(False), kind="JPEG", quality=60),
        file(np.asarray(Image.fromarray(soft(False)).rotate(3, Image.Resampling.BICUBIC))),
        file(soft() / 255, "F", "TIFF"),
    ],
)
def test_soft_edges_are_no_classes(data):
    found = meaning(data)
    assert not found.classes and not found.void and found.half == 128
    area = found.thing(mask_values(data)[0]).sum()
    assert abs(int(area) - 14 * 19) < 40


def test_thin_classes_beside_void():
    values = np.zeros(SIZE, np.int64)
    values[:, 20] = values[20] = 1
    values[:3] = 255
    found = meaning(file(values))
    assert list(found.classes) == [1] and set(found.void) == {255}


@pytest.mark.parametrize(
    "tree, words", [({0: "road", 1: "x"}, "0 is the background"), ({"a": 1, "b": 1}, "two names")]
)
def test_names_that_cannot_be_kept(tree, words):
    with pytest.raises(InputError, match=words):
        named_values(tree, "data.classes")


def test_a_jpeg_saved_as_png_is_soft():
    picture = Image.open(io.BytesIO(file(soft(False), kind="JPEG", quality=50)))
    assert meaning(file(np.asarray(picture))).half == 128


@pytest.mark.parametrize(
    "data, words",
    [
        (file(areas(128, 255)), "trimap"),
        (file(areas(1, 2, 3), kind="JPEG"), "a JPEG changes values"),
        (file(np.asarray(soft()) // 2 + 20), "nobody says"),
    ],
)
def test_what_no_rule_fits_is_refused(data, words):
    with pytest.raises(InputError, match=words):
        meaning(data)


def test_the_users_words_come_first():
    found = meaning(file(areas(1, 2, 255)), classes={1: "cup"}, void=[2])
    assert found.classes == {1: "cup"} and set(found.void) == {2, 255}
    found = meaning(file(areas(128, 255)), void=[128])
    assert not found.classes and set(found.void) == {128}
    found = meaning(file(areas(1, 255)), classes={1: "cup", 255: "sky"})
    assert sorted(found.classes) == [1, 255] and not found.void


def test_masks_of_a_folder_are_understood_together():
    found = meaning(file(areas(1)), file(areas(2)), file(areas(1, 255)))
    assert sorted(found.classes) == [1, 2] and set(found.void) == {255}


def test_files_that_mean_the_thing_by_other_values():
    found = meaning(file(areas(1), "P"), file(areas(255)))
    assert not found.classes and not found.void
    with pytest.raises(InputError, match="255 is the only value of some masks"):
        meaning(file(areas(1, 2)), file(areas(255)))


@pytest.mark.parametrize(
    "data, area",
    [
        (file(areas(1, 255)), 14 * 19),
        (file(areas(1, 2)), 2 * 14 * 19),
        (file(areas(255)), 14 * 19),
        (file(areas(128, 255)), 14 * 19),
        (file(areas(1, 255), "P"), 14 * 19),
    ],
)
def test_the_mask_of_a_reference(data, area):
    assert read_mask(data).sum() == area


def test_a_reference_from_a_jpeg_has_no_halo():
    mask = read_mask(file(soft(False), kind="JPEG", quality=40))
    assert np.array_equal(mask, soft(False) > 0)


def test_a_shape_drawn_in_black_on_nothing():
    image = np.zeros((*SIZE, 4), np.uint8)
    image[5:9, 5:9, 3] = 255
    assert read_mask(file(image)).sum() == 16


@pytest.mark.parametrize(
    "tree, names",
    [
        ({"1": "cup", "2": "plate"}, {1: "cup", 2: "plate"}),
        ({"cup": 1}, {1: "cup"}),
        ({1: "cup"}, {1: "cup"}),
        (["background", "cup"], {1: "cup"}),
        ({"#ff0000": "cup"}, {0xFF0000: "cup"}),
    ],
)
def test_names(tree, names):
    assert named_values(tree, "labels.json") == names


@pytest.mark.parametrize("tree", [3, "cup", [1, 2], {"cup": "plate"}, {"1": None}, {"1": ["a"]}])
def test_what_is_no_name(tree):
    with pytest.raises(InputError, match="labels.json"):
        named_values(tree, "labels.json")
