import numpy as np
import pytest
from parity import oracle

from reasonseg import InputError
from reasonseg.evaluation.metrics import (
    Counts,
    count,
    mean_iou,
    refusals,
)


def brute(mask, truth):
    inter = union = back_inter = back_union = 0
    for p, t in zip(mask.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t == 255:
            continue
        inter += p and t == 1
        union += p or t == 1
        back_inter += (not p) and t == 0
        back_union += (not p) or t == 0
    return inter, union, back_inter, back_union


@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 7)) < 0.4
    truth = rng.choice([0, 1, 255], size=(9, 7), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    c = count(mask, truth)
    assert (c.inter, c.union, c.back_inter, c.back_union) == brute(mask, truth)
    assert c.giou == pytest.approx(c.inter / (c.union + 1e-5))


def test_empty_truth_and_empty_mask_count_one():
    blank = np.zeros((4, 4), bool)
    assert count(blank, blank).giou == 1.0
    full = np.ones((4, 4), bool)
    assert count(full, blank).giou == 0.0
    assert count(blank, np.full((4, 4), 255, np.uint8)).giou == 1.0


def test_shards_add_up():
    rng = np.random.default_rng(0)
    each = [count(rng.random((6, 6)) < 0.5, rng.random((6, 6)) < 0.5) for _ in range(10)]
    assert sum(each[:3], Counts()) + sum(each[3:], Counts()) == sum(each, Counts())
    total = sum(each)
    assert total.giou == pytest.approx(np.mean([c.giou for c in each]))
    assert total.ciou == pytest.approx(sum(c.inter for c in each) / sum(c.union for c in each))


def test_shapes_must_agree():
    with pytest.raises(InputError, match="resize one"):
        count(np.zeros((2, 2), bool), np.zeros((2, 3), bool))


def test_lisa_validation():
    data = np.load(oracle("D_metrics", "lisa_metrics.npz"))
    total, i = Counts(), 0
    while f"logits_{i}" in data:
        for k, (logits, truth) in enumerate(zip(data[f"logits_{i}"], data[f"gt_{i}"], strict=True)):
            c = count(logits > 0, truth)
            assert [c.back_inter, c.inter] == data[f"inter_{i}"][k].tolist()
            assert [c.back_union, c.union] == data[f"union_{i}"][k].tolist()
            total += c
        assert [total.giou, total.ciou] == pytest.approx(
            data["giou_ciou_prefix"][i].tolist(), abs=2e-4
        )
        i += 1
    assert i > 5


@pytest.mark.parametrize("name", ["coco", "pascal"])
def test_few_shot_means(name):
    data = np.load(oracle("D_metrics", f"vlp_metrics_{name}.npz"))
    interest = data["class_ids_interest"].tolist()
    by_class = {c: Counts() for c in interest}
    b = 0
    while f"logits_{b}" in data:
        ignore = data[f"ignore_{b}"] if f"ignore_{b}" in data else np.zeros_like(data[f"gt_{b}"])
        for logits, truth, blind, c in zip(
            data[f"logits_{b}"], data[f"gt_{b}"], ignore, data[f"class_id_{b}"], strict=True
        ):
            truth = np.where(blind == 1, 255, truth).astype(np.uint8)
            by_class[int(c)] += count(logits > 0, truth)
        total = sum(by_class.values(), Counts())
        scores = [100 * mean_iou(by_class), 100 * total.fb_iou]
        assert scores == pytest.approx(data["miou_fbiou_after_batch"][b].tolist(), abs=1e-3)
        b += 1
    assert b == 5


def test_refusals():
    assert refusals([True, True, False, False], [True, False, False, True]) == (0.5, 0.5)
    assert refusals([False], [False]) == (None, 1.0)
