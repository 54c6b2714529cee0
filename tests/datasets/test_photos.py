"""Questions about annotated photographs, and views for training."""

import re

import numpy as np
import pytest
from photo_sets import make_sets

from reasonseg import InputError
from reasonseg.datasets.photographs.colours import shares_of
from reasonseg.datasets.photographs.knowledge import thing, things
from reasonseg.datasets.photographs.questions import LEVELS, PhotoAsker
from reasonseg.datasets.photographs.records import records
from reasonseg.datasets.photographs.views import plain_view, varied_view
from reasonseg.datasets.photos import Config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(make_sets(tmp_path_factory.mktemp("sets")))


def test_records_are_read_with_their_void(root):
    found = records(root, "train")
    assert len(found) == 9 and len(records(root, "val")) == 3
    objects, void = found[0].objects()
    assert len(objects) == 3 and void[:3, :3].all() and void.sum() == 9
    assert {o.name for o in objects} == set(found[0].names) and "zebra" in found[0].known
    with pytest.raises(InputError, match="no photographs of split val"):
        records(root + "/coco-mini/images", "val")


def test_a_plain_view_is_the_photograph(root):
    record = records(root, "train")[0]
    view = plain_view(record, 128)
    assert view.content == (96, 128) and np.array_equal(view.image[:96], record.image())
    assert (view.image[96:] == 127).all()
    for ours, theirs in zip(view.objects, record.objects()[0], strict=True):
        assert np.array_equal(ours.mask[:96], theirs.mask)


def test_views_vary_and_their_masks_lie_on_their_things(root):
    pool = list(records(root, "train"))
    for k in range(40):
        rng = np.random.default_rng(k)
        view = varied_view(pool[k % 9], 128, rng, pool[:2], paste=0.5)
        high, wide = view.content
        for found in view.objects:
            assert found.mask.sum() >= 40 and not found.mask[high:].any()
            assert not found.mask[:, wide:].any()
            inside = view.image[found.mask].astype(float)
            assert inside.std(0).mean() < 60, found.name  # of one colour, so it is the thing
        again = varied_view(pool[k % 9], 128, np.random.default_rng(k), pool[:2], paste=0.5)
        assert np.array_equal(view.image, again.image)


def test_every_level_has_true_answers(root):
    seen = set()
    for k, record in enumerate(records(root, "train") * 6):
        view = plain_view(record, 128)
        asker = PhotoAsker(view, np.random.default_rng(k))
        for level in LEVELS:
            question = asker.ask(level)
            if question is None:
                continue
            seen.add(level)
            assert question.answer.count("<SEG>") == len(question.masks)
            assert question.text.strip() and "{" not in question.text
            if level == "absent":
                assert question.answer == "<REJ>." and not question.masks
                continue
            for mask in question.masks:
                assert mask.any()
            if level == "name":
                assert np.array_equal(question.masks[0], union_of(view, question.names[0]))
            here = set(record.names)
            assert set(question.names) <= here
    assert seen == set(LEVELS)


def union_of(view, name):
    return np.logical_or.reduce([o.mask for o in view.objects if o.name == name])


def test_absent_questions_name_nothing_that_is_there(root):
    for k, record in enumerate(records(root, "train") * 10):
        question = PhotoAsker(plain_view(record, 128), np.random.default_rng(k)).ask("absent")
        words = question.text.lower()
        if any(colour in words for colour in ("red", "blue", "white", "black", "green", "yellow")):
            continue  # the name may be there, in another colour
        for name in record.names:
            assert not re.search(rf"\bthe {name}\b", words), (question.text, record.names)


def test_evaluation_asks_with_other_wordings_than_training():
    for name in things():
        train, other = (set(thing(name).wordings(t)) for t in (True, False))
        assert not train & other
    assert sum(len(thing(n).wordings(False)) for n in things()) > 80


def test_samples_are_a_function_of_seed_and_index(root):
    config = Config(root, size=128, per_photo=4)
    one, two = config.training(12, 3), config.training(12, 3)
    assert [one[i].query.text for i in range(12)] == [two[i].query.text for i in (*range(12),)]
    assert one[0].query.image is one[3].query.image is not one[4].query.image
    others = config.training(12, 4)
    assert [others[i].query.text for i in range(12)] != [one[i].query.text for i in range(12)]
    val = Config(root, "val", count=10, size=128, per_photo=2).build()
    assert 0 < len(val) <= 10 and len({val.id(i) for i in range(len(val))}) == len(val)
    sample = val[0]
    assert sample.query.image.shape == (96, 128, 3) and sample.truth.masks.shape[1:] == (96, 128)
    with pytest.raises(IndexError):
        one[12]
    with pytest.raises(InputError, match="'tall'"):
        Config(root, levels=("tall",)).build()


def test_colours_are_named():
    image = np.zeros((4, 4, 3), np.uint8)
    everywhere = np.ones((4, 4), bool)
    for value, name in (
        ((220, 30, 30), "red"), ((250, 220, 30), "yellow"), ((30, 160, 50), "green"),
        ((30, 60, 220), "blue"), ((245, 245, 245), "white"), ((10, 10, 10), "black"),
        ((128, 128, 128), "grey"), ((110, 70, 30), "brown"), ((250, 140, 20), "orange"),
    ):  # fmt: skip
        image[:] = value
        assert shares_of(image, everywhere) == {name: 1.0}, value
    assert shares_of(image, ~everywhere) == {}
