"""Run lengths: what is damaged is refused, and all else equals pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco

from reasonseg import InputError
from reasonseg.structures import brush
from reasonseg.structures.masks import area_of, from_rle, to_rle
from reasonseg.structures.outlines import outlines
from reasonseg.structures.polygons import checked_points, coco_mask, fill


def random_mask(rng):
    height, width = (int(v) for v in rng.integers(1, 40, 2))
    small = rng.random((height, width)) < rng.random()
    times = int(rng.integers(1, 6))
    return np.repeat(np.repeat(small, times, 0), times, 1)


def test_runs_equal_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = random_mask(rng)
        rle = to_rle(mask)
        assert np.array_equal(from_rle(rle), mask) and area_of(rle) == mask.sum()
        raw = coco.decode({**rle, "counts": rle["counts"].encode()})
        assert np.array_equal(raw, mask)
        values = np.concatenate([[0], mask.T.ravel(), [2]])
        edges = np.flatnonzero(np.diff(values))
        counts = np.diff(np.concatenate([[0], edges])).tolist()
        assert np.array_equal(from_rle({"size": list(mask.shape), "counts": counts}), mask)


@pytest.mark.parametrize(
    "rle, words",
    [
        ({"size": [4, 4], "counts": [3, 5]}, "add up to 8 of 16"),
        ({"size": [4, 4], "counts": [16, 5]}, "add up to 21 of 16"),
        ({"size": [4, 4], "counts": [20, -4]}, "a run of -4"),
        ({"size": [4, 4], "counts": [8.0, 8]}, "whole numbers"),
        ({"size": [4, 4], "counts": [True, 15]}, "whole numbers"),
        ({"size": [4, 4], "counts": None}, "NoneType"),
        ({"size": [4, 4], "counts": "abc"}, "cut off"),
        ({"size": [4, 4], "counts": "P"}, "cut off"),
        ({"size": [4, 4], "counts": "é"}, "not ASCII"),
        ({"size": [4, 4], "counts": "oooooooooooo0"}, "longer than any"),
        ({"size": [4, 4], "counts": ""}, "add up to 0"),
        ({"size": [4], "counts": [16]}, "not \\[height, width\\]"),
        ({"size": [-4, -4], "counts": [16]}, "not \\[height, width\\]"),
        ({"size": ["4", 4], "counts": [16]}, "not \\[height, width\\]"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "too large"),
        ([], "not \\[height, width\\]"),
    ],
)
def test_damaged_runs_are_refused(rle, words):
    for read in (from_rle, area_of):
        with pytest.raises(InputError, match=words):
            read(rle)


@pytest.mark.parametrize(
    "points, words",
    [
        ([0, 0, 9, 0, float("nan"), 9], "nan is not finite"),
        ([0, 0, 9, 0, float("inf"), 9], "inf is not finite"),
        ([0, 0, 9, 0, 1e9, 9], "lies far outside"),
        ([0, 0, 9, 0, 10**400, 9], "lies far outside"),
        ([0, 0, 9, 0, "5", 9], "'5' is not a number"),
        ([0, 0, 9, 0, None, 9], "None is not a number"),
        ([0, 0, 9, 0, True, 9], "True is not a number"),
        ([0, 0, 9, 0, 5], "not pairs"),
    ],
)
def test_absurd_coordinates_never_reach_native_code(points, words):
    with pytest.raises(ValueError, match=words):
        checked_points(points, (20, 20))
    with pytest.raises(InputError, match=words):
        coco_mask([points], (20, 20), "here")


def test_outlines_draw_the_same_mask_again():
    rng = np.random.default_rng(1)
    for _ in range(200):
        mask = random_mask(rng)
        drawn = np.zeros(mask.shape, bool)
        for part in outlines(mask):
            assert len(part) >= 3
            drawn |= fill(part.astype(float), mask.shape)
        assert np.array_equal(drawn, mask)


def test_a_hole_is_joined_to_its_outline():
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    mask[10:15, 10:15] = mask[20:30, 12:20] = False
    (ring,) = outlines(mask)
    assert np.array_equal(fill(ring.astype(float), mask.shape), mask)


def test_brush_equals_label_studio():
    from label_studio_converter import brush as theirs

    rng = np.random.default_rng(2)
    for _ in range(20):
        mask = random_mask(rng)[:30, :30]
        ours = brush.encode(mask)
        assert np.array_equal(theirs.decode_rle(ours).reshape(*mask.shape, 4)[..., 3] > 0, mask)
        made = [int(v) for v in theirs.mask2rle((mask * 255).astype(np.uint8))]
        assert np.array_equal(brush.decode(made, mask.shape), mask)


@pytest.mark.parametrize("cut", [0, 5, 12, -3])
def test_a_damaged_brush_mask_is_refused(cut):
    mask = np.eye(20, dtype=bool)
    with pytest.raises(InputError, match="brush mask"):
        brush.decode(brush.encode(mask)[:cut], (20, 20))
    with pytest.raises(InputError, match="its image"):
        brush.decode(brush.encode(mask), (20, 21))
