"""Other weights, another identity; and threads that share a model."""

import copy
import os
import threading

import numpy as np
import pytest
import torch

from reasonseg.checkpoints import file_hashes
from reasonseg.nn.cache import ImageCache, version_of


@pytest.fixture
def model(segmenter):
    fresh = copy.deepcopy(segmenter)
    fresh.forget()
    return fresh


def test_any_changed_row_changes_the_fingerprint(model, segmenter):
    first = model.fingerprint
    assert first == model.fingerprint == segmenter.fingerprint
    rows = model.backbone.model.get_input_embeddings().weight
    seg = model.backbone.markers.ids[0]
    rows.data[seg] += 0.01  # as people write rows
    second = model.fingerprint
    with torch.no_grad():
        rows[seg, -1] += 0.01
    third = model.fingerprint
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("through_data", [True, False])
def test_written_weights_are_noticed(through_data):
    module = torch.nn.Linear(7, 5)
    before = version_of(module)
    with torch.no_grad():
        weight = module.weight.data if through_data else module.weight
        weight[3, 2] += 1e-3
    assert version_of(module) != before


def test_exchanged_rows_change_the_fingerprint(model):
    before = model.fingerprint
    rows = model.backbone.model.get_input_embeddings().weight.data
    seg, rej = model.backbone.markers.ids[:2]
    rows[[seg, rej]] = rows[[rej, seg]]
    assert model.fingerprint != before


def test_the_cache_of_images_sees_weights_written_through_data(model, scenes):
    query = scenes[0].query
    before = model.forced([query])[0].masks
    for parameter in model.decoder.parameters():
        parameter.data.mul_(-1)
    assert not np.array_equal(before, model.forced([query])[0].masks)


def test_a_key_that_is_kept_again_counts_once():
    cache = ImageCache(budget=1000)
    for _ in range(5):
        cache.keep("a", torch.zeros(100))
    assert cache.bytes == 400 and cache.find("a") is not None
    cache.keep("b", torch.zeros(100))
    assert cache.bytes == 800 and set(cache.kept) == {"a", "b"}


def test_threads_share_a_cache():
    cache = ImageCache(budget=4000)

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(400):
            key = int(rng.integers(30))
            cache.keep(key, torch.zeros(int(rng.integers(1, 100))))
            cache.find(int(rng.integers(30)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.bytes == sum(row.nbytes for row in cache.kept.values()) <= 4000


def test_eight_threads_get_the_answers_of_one(model, scenes):
    queries = [s.query for s in scenes[:8]]
    alone = [model(query) for query in queries]
    model.forget()
    found: dict[int, list] = {}

    def ask(k):
        found[k] = [model(queries[(k + j) % 8]) for j in range(3)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for k, answers in found.items():
        for j, answer in enumerate(answers):
            expected = alone[(k + j) % 8]
            assert answer.text == expected.text and answer.status == expected.status
            assert (answer.masks != expected.masks).sum() <= 4


def test_a_file_is_hashed_whole_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights.bin"
    file.write_bytes(b"a" * 100_000)
    first = file_hashes.hash_of(file)
    monkeypatch.setattr(file_hashes, "CHUNK", 0)  # reading again would find nothing
    assert file_hashes.hash_of(file) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changed = bytearray(b"a" * 100_000)
    changed[50_000] = 7
    file.write_bytes(bytes(changed))
    os.utime(file, ns=(1, 1))
    assert file_hashes.hash_of(file) != first
