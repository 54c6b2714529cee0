"""The benchmark says what its contract says, and its rivals draw the same masks as we do."""

import pytest

from scripts import bench


def test_latency_compares_the_same_work(segmenter):
    """`latency_of` itself refuses to compare answers whose masks differ."""
    seconds = bench.latency_of(segmenter, 4, runs=1)
    assert set(seconds) == {"reference", "plain", "first", "followup"} and all(
        len(v) == 1 for v in seconds.values()
    )


def test_a_rival_that_draws_another_mask_is_refused(segmenter, monkeypatch):
    monkeypatch.setattr(bench, "plain", lambda *_: bench.np.ones((1, 480, 640), bool))
    with pytest.raises(AssertionError, match="another mask"):
        bench.latency_of(segmenter, 4, runs=1)


def test_the_keys_others_read(segmenter, monkeypatch):
    monkeypatch.setattr(bench, "LENGTHS", (4,))
    monkeypatch.setattr(bench, "BATCHES", (2,))
    ratios = bench.latency(segmenter, 1)["ratios"]
    assert set(ratios) == {
        "first_over_reference",
        "followup_over_reference",
        "first_over_plain",
        "followup_over_plain",
    }
    assert set(ratios["first_over_reference"]) == {"4"}
    assert set(bench.throughput(segmenter, 1)["ratios"]["batch_over_single"]) == {"2"}
    found = bench.evaluation(segmenter, 1)["ratios"]
    assert set(found) == {"evaluation_over_reference", "evaluation_over_reference_without_encoder"}


def test_a_ratio_is_the_baselines_time_over_ours():
    found = bench.ratio({"theirs": [2.0, 6.0, 4.0], "ours": [1.0, 2.0, 1.0]}, "theirs", "ours")
    assert found == {"median": 3.0, "low": 2.0, "high": 4.0}
