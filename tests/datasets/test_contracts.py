"""What every data set must do, whichever file it lives in."""

import numpy as np
import pytest
from photo_sets import make_sets
from small_data import pairs, parts, reason_seg, refer, semantic, vqa

from reasonseg import InputError, Sample
from reasonseg.config import kinds as config
from reasonseg.datasets.scenes import Config

KINDS = config.kinds("datasets")
# kinds whose files are the user's
WRITTEN = {
    "reason": reason_seg,
    "refer": refer,
    "folder": pairs,
    "semantic": semantic,
    "parts": parts,
    "vqa": vqa,
    "photos": make_sets,
}


def test_the_walk_sees_kinds():
    assert "scenes" in KINDS


@pytest.fixture(scope="module", params=KINDS)
def data(request, tmp_path_factory, font):
    cls = config.config_class("datasets", request.param)
    if (example := cls.example()) is None:
        example = cls(str(WRITTEN[request.param](tmp_path_factory.mktemp("data"))))
    return example.build()


def test_it_ends_where_it_says(data):
    assert len(data) > 0
    with pytest.raises(IndexError):
        data[len(data)]
    assert sum(1 for _ in data) == len(data)


def test_it_is_a_pure_function_of_the_index(data):
    again = type(data)(data.config)
    for i in reversed(range(len(data))):
        a, b = data[i], again[i]
        assert (
            isinstance(a, Sample)
            and a.id == b.id
            and a.query.text == b.query.text
            and a.truth.text == b.truth.text
        )
        assert (a.query.image == b.query.image).all() and (a.truth.masks == b.truth.masks).all()


def test_masks_match_images_and_answers(data):
    ids = set()
    for sample in data:
        assert sample.truth.masks.shape[1:] == sample.query.size
        spoken = bool(sample.truth.text)  # an example alone is answered without words
        assert sample.truth.text.count("<SEG>") == len(sample.truth.masks) * spoken and (
            spoken or sample.query.references
        )
        assert all(mask.any() for mask in sample.truth.masks)
        ids.add(sample.id)
    assert len(ids) == len(data)


def test_training_questions_of_one_scene_share_its_image(font):
    data = Config("train", 12, size=96, per_scene=4, same_shape=3).build()
    samples = [data[i] for i in range(12)]
    for start in (0, 4, 8):
        assert len({id(s.query.image) for s in samples[start : start + 4]}) == 1
    assert len({s.query.size for s in samples}) == 1
    assert not np.array_equal(samples[0].query.image, samples[4].query.image)
    assert data[2].query.text == samples[2].query.text  # in any order


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"split": "exam"}, "no split"),
        ({"levels": ("nam",)}, "no level"),
        ({"mix": {"x": 1.0}}, "no level"),
    ],
)
def test_unknown_words_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        Config(**fields).build()
