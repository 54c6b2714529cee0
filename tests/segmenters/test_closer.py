"""A box alone is drawn from near as well, where the settings say so; all else is as before."""

from dataclasses import replace

import numpy as np
import pytest

from reasonseg import InputError, Query, Segmenter
from reasonseg.segmenters.closer import piece_at, window


@pytest.fixture(scope="module")
def near(segmenter):
    found = Segmenter.from_pretrained("tiny", device="cpu")
    found.settings = replace(segmenter.settings, closer=1.4)
    return found


def boxed(scenes):
    for scene in scenes:
        for mask in scene.truth.masks:
            ys, xs = np.nonzero(mask)
            if len(ys) > 60:
                box = (float(xs.min()), float(ys.min()), xs.max() + 1.0, ys.max() + 1.0)
                yield Query(scene.query.image, boxes=[box]), mask


def test_a_box_is_looked_at_twice(segmenter, near, scenes):
    pairs = list(boxed(scenes))[:12]
    plain, twice = (m.batch([q for q, _ in pairs]) for m in (segmenter, near))
    changed = 0
    for (query, _), one, two in zip(pairs, plain, twice, strict=True):
        x0, y0, x1, y1 = window(query.boxes[0], query.size, 1.1, 0)
        outside = two.masks[0].copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any() and two.scores == one.scores
        changed += int((one.masks != two.masks).sum())
    assert changed > 0
    for (query, _), expected in zip(pairs[:4], twice, strict=False):
        assert (near(query).masks == expected.masks).all()


def test_words_points_and_corrections_are_as_before(segmenter, near, scenes):
    query, mask = next(boxed(scenes))
    others = [scenes[0].query, replace(query, points=[(*_middle(mask), 1)]),
              replace(query, previous=mask)]  # fmt: skip
    for one, two in zip(segmenter.batch(others), near.batch(others), strict=True):
        assert one.text == two.text and (one.masks == two.masks).all()


def test_a_click_marks_one_piece(segmenter, scenes):
    mask = np.zeros((20, 30), bool)
    mask[2:6, 2:6] = mask[10:15, 20:25] = True
    assert piece_at(mask, (21.0, 11.0, 1)).sum() == 25 and piece_at(mask, (3.0, 3.0, 1)).sum() == 16
    assert (piece_at(mask, (12.0, 8.0, 1)) == mask).all()
    assert (piece_at(mask, (99.0, -5.0, 1)) == mask).all()
    single = Segmenter.from_pretrained("tiny", device="cpu")
    single.settings = replace(segmenter.settings, one_piece=True)
    query, truth = next(boxed(scenes))
    click = replace(query, boxes=[], points=[(*_middle(truth), 1)])
    expected = piece_at(segmenter(click).masks[0], click.points[0])
    assert (single(click).masks[0] == expected).all()
    two = replace(click, points=[*click.points, (1.0, 1.0, 0)])
    assert (single(two).masks == segmenter(two).masks).all()


def test_windows_stay_in_the_picture():
    assert window((10, 10, 20, 30), (100, 100), 2.0, 0) == (5, 0, 25, 40)
    assert window((0, 0, 4, 4), (10, 10), 1.3) == (0, 0, 10, 10)
    assert window((90, 90, 100, 100), (100, 100), 3.0, 0) == (80, 80, 100, 100)


def test_a_cut_into_the_box_is_refused(segmenter):
    with pytest.raises(InputError, match="closer: 0.5"):
        replace(segmenter.settings, closer=0.5)


def _middle(mask):
    ys, xs = np.nonzero(mask)
    return float(xs[len(xs) // 2]), float(ys[len(ys) // 2])
