"""Intervals hold the true value as often as they say, and grow with what questions share."""

import numpy as np
import pytest

from reasonseg.evaluation.intervals import (
    MIN_EPISODES,
    class_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)
from scripts.coverage import coverage


def test_they_cover_what_they_say():
    """93 to 97 % of 1000 draws; the error of a share of 1000 is 0.7 points."""
    found = coverage(1000)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found


def test_questions_about_one_image_count_less():
    rng = np.random.default_rng(0)
    images = rng.random(40)
    values = np.repeat(images, 5).tolist()
    groups = np.repeat(np.arange(40), 5).tolist()
    alone, together = mean_interval(values), mean_interval(values, groups)
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])
    flags = [v > 0.5 for v in values]
    alone, together = share_interval(flags), share_interval(flags, groups)
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_a_share_of_all_has_a_width():
    low, high = share_interval([True] * 30)
    assert 0.85 < low < 0.9 and high == 1.0
    assert share_interval([]) is None


def test_they_are_the_same_again():
    rng = np.random.default_rng(1)
    a, b = rng.random(50), 1 + rng.random(50)
    assert ratio_interval(a, b) == ratio_interval(a, b)
    low, high = ratio_interval(a, b)
    assert 0 <= low < a.sum() / b.sum() < high <= 1


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_rows_have_none(values):
    assert mean_interval(values) is None


def test_too_few_episodes_of_a_class_have_none():
    few = MIN_EPISODES - 1
    assert class_interval(["a"] * few, [1] * few, [2] * few) is None
    many = class_interval(["a"] * 20 + ["b"] * 20, [1, 2] * 20, [2, 3] * 20)
    assert many is not None and many[0] < 0.6 < many[1]
