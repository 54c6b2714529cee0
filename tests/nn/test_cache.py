"""A second question about an image runs no encoder, and says what the first would have said."""

import copy

import numpy as np
import pytest
import torch

from reasonseg import Query
from reasonseg.nn.cache import ImageCache
from reasonseg.nn.features import Features


@pytest.fixture
def model(segmenter):
    fresh = copy.deepcopy(segmenter)
    fresh.forget()
    return fresh


@pytest.fixture
def runs(model, monkeypatch):
    """How many images each encoder has seen."""
    count = {"decoder": 0, "backbone": 0}
    for part in count:
        encode = getattr(model, part).encode

        def counted(images, part=part, encode=encode):
            count[part] += len(images)
            return encode(images)

        monkeypatch.setattr(getattr(model, part), "encode", counted)
    return count


def test_a_follow_up_encodes_nothing(model, runs, scenes):
    image = scenes[0].query.image
    model(Query(image, "the cup"))
    assert runs == {"decoder": 1, "backbone": 1}
    model.batch([Query(image.copy(), "the cat"), Query(image, "the largest thing")])
    model.forced([Query(image, "the dog")])
    assert runs == {"decoder": 1, "backbone": 1}
    model.batch([Query(image, "the cup"), Query(scenes[1].query.image, "the cup")])
    assert runs == {"decoder": 2, "backbone": 2}


def test_cached_is_uncached(model, segmenter, scenes):
    queries = [s.query for s in scenes[:6]]
    model.batch(queries)
    segmenter.forget()
    for query, kept in zip(queries, model.batch(queries), strict=True):
        segmenter.forget()
        fresh = segmenter(query)
        assert fresh.text == kept.text and (fresh.masks != kept.masks).sum() <= 4


def test_the_prefix_of_an_image_is_read_once(model, scenes, monkeypatch):
    """Its keys and values serve every later question, in any company, and say what reading it
    anew would have said.
    """
    prefix, read = model.backbone.prefix, []
    monkeypatch.setattr(
        model.backbone, "prefix", lambda features: read.append(len(features)) or prefix(features)
    )
    a, b = scenes[0].query.image, scenes[1].query.image
    questions = [
        Query(a, "the cup"),
        Query(b, "the largest thing"),
        Query(a, "what is red"),
        Query(b, "the cup"),
    ]
    for query in questions:
        model(query)
    assert read == [], "the first question leaves them behind"
    model.batch(questions)
    kept = model.batch([*questions, Query(a, "the dog", history=(("the cup", "The cup <SEG>."),))])
    assert read == [] and len(model.prefixes.kept) == 2
    model.forget()
    model.batch(questions)
    assert read == [2], "two new pictures with two questions each"
    model.forget()
    monkeypatch.setattr(model, "_prefixes", lambda *_: {})
    for query, answer in zip(questions, kept, strict=False):
        model.forget()
        fresh = model(query)
        assert fresh.text == answer.text and (fresh.masks != answer.masks).sum() <= 4


def test_several_new_images_are_read_with_their_questions(model, scenes, monkeypatch):
    monkeypatch.setattr(model.backbone, "prefix", lambda features: pytest.fail("nothing to share"))
    model.batch([s.query for s in scenes[:4]])


def test_a_prefix_is_that_of_its_weights(model, scenes):
    query = scenes[0].query
    model(query), model(query)
    with torch.no_grad():
        model.backbone.layers[0].self_attn.k_proj.weight.mul_(0.5)
    kept = model(query)
    model.forget()
    fresh = model(query)
    assert kept.text == fresh.text and (kept.masks != fresh.masks).sum() <= 4


def test_folded_adapters_are_other_weights(model, scenes):
    """peft writes into a weight without telling its counter."""
    from reasonseg.nn.lora import add_lora, fold_adapters

    query = scenes[0].query
    model(query), model(query)
    for parameter in add_lora(model.backbone.layers, 2, 16.0):
        torch.nn.init.normal_(parameter, std=0.5)
    fold_adapters(model.backbone.layers)
    kept = model(query)
    model.forget()
    fresh = model(query)
    assert kept.text == fresh.text and (kept.masks != fresh.masks).sum() <= 4


def test_other_weights_are_another_encoder(model, runs, picture):
    model(Query(picture, "the cup"))
    with torch.no_grad():
        next(model.decoder.parameters()).add_(0.0)
    model(Query(picture, "the cup"))
    assert runs == {"decoder": 2, "backbone": 1}
    with torch.no_grad():
        model.backbone.model.model.multi_modal_projector.linear_1.weight.mul_(1.0)
    model(Query(picture, "the cup"))
    assert runs == {"decoder": 2, "backbone": 2}


def pictures(count):
    return [np.full((4, 4, 3), i, np.uint8) for i in range(count)]


def encode(images):
    values = torch.tensor([[float(i.mean())] * 10 for i in images])
    return Features(values, (values * 2,))


def test_the_budget_is_kept_and_the_latest_stay():
    module, cache = torch.nn.Linear(1, 1), ImageCache(budget=3 * 80)
    cache([module], pictures(3), encode)
    cache([module], pictures(1), encode)  # the first is used again
    cache([module], pictures(4)[3:], encode)
    assert cache.bytes == 240 and len(cache.kept) == 3
    seen = []
    cache([module], pictures(4), lambda images: seen.extend(images) or encode(images))
    assert [int(i.mean()) for i in seen] == [1]


def test_more_images_than_fit_and_repeats():
    module, cache = torch.nn.Linear(1, 1), ImageCache(budget=80)
    images = [*pictures(3), *pictures(2)]
    found = cache([module], images, encode)
    assert found.embedding[:, 0].tolist() == [0, 1, 2, 0, 1] and found.more[0][:, 0].tolist() == [
        0,
        2,
        4,
        0,
        2,
    ]
    assert cache.bytes <= 80
    assert ImageCache(budget=1)([module], images, encode).embedding.shape == (5, 10)


def test_large_pictures_go_through_in_small_numbers():
    counts = []
    module, images = torch.nn.Linear(1, 1), pictures(5)

    def counting(part):
        counts.append(len(part))
        return encode(part)

    found = ImageCache()([module], images, counting, side=1024)
    assert counts == [2, 2, 1] and found.embedding[:, 0].tolist() == [0, 1, 2, 3, 4]
