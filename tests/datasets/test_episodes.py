"""Few-shot episodes and their scores."""

import json

import numpy as np
import pytest
from parity import oracle
from PIL import Image

from reasonseg import Answer, InputError
from reasonseg.datasets.episodes import COCO, PASCAL, Config
from reasonseg.datasets.synthetic.knowledge import Knowledge
from reasonseg.evaluation.few_shot import class_means, evaluate_episodes
from reasonseg.evaluation.metrics import Counts, count, mean_iou


def test_the_same_query_and_first_reference_for_every_k(font):
    one, five = (Config(count=5, shots=k, size=96).build() for k in (1, 5))
    for i in range(5):
        a, b = one[i], five[i]
        assert (
            (a.query.image == b.query.image).all()
            and (a.truth.masks == b.truth.masks).all()
            and a.id == b.id
        )
        assert (a.query.references[0].image == b.query.references[0].image).all()
        assert len(a.query.references) == 1 and len(b.query.references) == 5


def test_seen_and_withheld_never_mix(font):
    knowledge = Knowledge.load()
    withheld, seen = (Config(group=g, count=3, size=96).build() for g in ("withheld", "seen"))
    assert all(map(knowledge.withheld, withheld.labels)) and not any(
        map(knowledge.withheld, seen.labels)
    )
    assert len(withheld.labels) > 40 and len(seen.labels) > 150


def test_what_an_episode_gives(font):
    label = Config(count=2, prompt="label", size=96).build()[0]
    assert not label.query.references and label.truth.labels[0] in label.query.text
    reference = Config(count=2, prompt="reference", size=96).build()[0]
    assert reference.query.references[0].label is None and not reference.query.text
    both = Config(count=2, prompt="both", size=96).build()[0]
    assert both.query.references[0].label == both.truth.labels[0]


def test_copies_look_otherwise(font):
    episode = Config(count=8, shots=2, size=96).build()
    areas = [[r.mask.sum() for r in episode[i].query.references] for i in range(8)]
    assert all(a != b for a, b in areas)


def test_a_foreign_pack_counts_as_withheld(font, tmp_path):
    from reasonseg.datasets.synthetic.sprites import render_pack

    render_pack(tmp_path / "pack")
    assert len(Config(count=4, sprites=str(tmp_path / "pack"), group="seen", size=96).build()) == 0
    assert len(Config(count=4, sprites=str(tmp_path / "pack"), size=96).build()) == 4


@pytest.fixture
def voc(tmp_path):
    """PASCAL in its layout: three images a class, for two classes of fold 1 and two others."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / "VOC2012" / folder).mkdir(parents=True)
    lists = {"val": {6: [], 7: []}, "train": {1: [], 2: []}}
    for members in lists.values():
        for value, files in members.items():
            for k in range(3):
                name = f"{value}_{k}"
                Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(
                    tmp_path / f"VOC2012/JPEGImages/{name}.jpg"
                )
                mask = np.zeros((30, 40), np.uint8)
                mask[5:20, 5 + k : 25] = value
                mask[4, 5:25] = 255
                Image.fromarray(mask).save(tmp_path / f"VOC2012/SegmentationClassAug/{name}.png")
                files.append(
                    (
                        f"../data/VOC2012/JPEGImages/{name}.jpg",
                        f"../data/VOC2012/SegmentationClassAug/{name}.png",
                    )
                )
    for part, members in lists.items():
        place = tmp_path / "splits/lists/pascal/fss_list" / part
        place.mkdir(parents=True)
        (place / "sub_class_file_list_1.txt").write_text(repr(members), encoding="utf-8")
    return tmp_path


def test_pascal(voc):
    data = Config(str(voc), "pascal", 1, shots=2, count=20).build()
    assert data.labels == ["bus", "car"]
    for sample in (data[i] for i in range(20)):
        assert (
            sample.truth.masks.shape == (1, 30, 40)
            and sample.ignored is not None
            and sample.ignored.sum() == 20
        )
        pictures = [sample.query.image, *(r.image for r in sample.query.references)]
        assert all((a != b).any() for k, a in enumerate(pictures) for b in pictures[:k])
    assert Config(str(voc), "pascal", 1, group="seen", count=3).build().labels == [
        "aeroplane",
        "bicycle",
    ]
    with pytest.raises(InputError, match="3 shots and a query need 4"):
        Config(str(voc), "pascal", 1, shots=3, count=2).build()[0]


def test_coco_as_the_reference_lays_it_out():
    root = oracle("C_vlpsam", "cases.json").parent
    data = Config(str(root), "coco", 0, count=12).build()
    assert set(data.labels) <= set(COCO[0::4]) and data.labels
    for i in range(12):
        assert data[i].truth.masks.any() and data[i].ignored is None
    assert set(Config(str(root), "pascal", 1, count=4).build().labels) <= set(PASCAL[5:10])


def test_fss(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("abacus", "big_ben"):
        (tmp_path / name).mkdir()
        for k in range(1, 5):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{k}.jpg"
            )
            mask = np.zeros((20, 20, 3), np.uint8)
            mask[3 : 10 + k, 4:12] = 255
            Image.fromarray(mask).save(tmp_path / name / f"{k}.png")
    data = Config(str(tmp_path), "fss", count=6).build()
    assert {data[i].truth.labels[0] for i in range(6)} <= {"abacus", "big ben"}
    assert len(Config(str(tmp_path), "fss", group="seen", count=6).build()) == 0


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"benchmark": "pascal"}, "does not exist"),
        ({"benchmark": "fss"}, "is no folder"),
        ({"fold": 4}, "fold"),
        ({"shots": 0}, "shots"),
    ],
)
def test_what_is_missing_is_named(tmp_path, fields, words):
    with pytest.raises(InputError, match=words):
        Config(root=str(tmp_path / "none"), **fields).build()


def test_a_list_that_is_none(voc):
    (voc / "splits/lists/pascal/fss_list/val/sub_class_file_list_1.txt").write_text(
        "__import__('os')", encoding="utf-8"
    )
    with pytest.raises(InputError, match="is no class list"):
        Config(str(voc), "pascal", 1).build()


class Oracle:
    """Answers with the first reference's mask, put into the frame of the question."""

    fingerprint = "first-reference"

    def batch(self, queries):
        answers = []
        for query in queries:
            mask = np.zeros(query.size, bool)
            mask[5:20, 5:25] = True
            answers.append(Answer("", mask[None], [1.0], [""], "found"))
        return answers


def test_scores_are_those_of_the_papers(voc, tmp_path):
    """mIoU: mean over classes of summed counts; FB-IoU: thing and background; 255 counts for
    nobody.
    """
    config = Config(str(voc), "pascal", 1, count=30)
    summary = evaluate_episodes(Oracle(), config, out=tmp_path / "out", progress=False)
    by_class, total = {}, Counts()
    for i in range(30):
        sample = config.build()[i]
        truth = np.where(sample.ignored, 255, sample.truth.masks[0]).astype(np.uint8)
        counts = count(Oracle().batch([sample.query])[0].masks[0], truth)
        by_class[sample.truth.labels[0]] = by_class.get(sample.truth.labels[0], Counts()) + counts
        total += counts
    assert summary["withheld"]["miou"] == pytest.approx(mean_iou(by_class))
    assert (
        summary["withheld"]["fb_iou"] == pytest.approx(total.fb_iou)
        and summary["withheld"]["n"] == 30
    )
    low, high = summary["withheld"]["ci95"]
    assert low <= summary["withheld"]["miou"] <= high and set(summary) == {"withheld", "seen"}
    rows = [
        json.loads(line)
        for line in (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 60


def test_resumed_is_uninterrupted(voc, tmp_path):
    config = Config(str(voc), "pascal", 1, count=40)
    whole = evaluate_episodes(Oracle(), config, out=tmp_path / "a", progress=False)
    evaluate_episodes(Oracle(), config, out=tmp_path / "b", progress=False)
    lines = (tmp_path / "b/rows.jsonl").read_text(encoding="utf-8").splitlines(True)
    (tmp_path / "b/rows.jsonl").write_text("".join(lines[:21]) + lines[21][:9], encoding="utf-8")
    assert evaluate_episodes(Oracle(), config, out=tmp_path / "b", progress=False) == whole
    assert sorted((tmp_path / "a/rows.jsonl").read_text(encoding="utf-8").splitlines()) == sorted(
        (tmp_path / "b/rows.jsonl").read_text(encoding="utf-8").splitlines()
    )
    with pytest.raises(InputError, match="other settings"):
        evaluate_episodes(
            Oracle(), Config(str(voc), "pascal", 1, count=41), out=tmp_path / "b", progress=False
        )


def test_class_means():
    counts = [{"inter": 1, "union": 2}, {"inter": 3, "union": 4}, {"inter": 0, "union": 5}]
    value, interval = class_means(["a", "a", "b"], counts)
    assert value == pytest.approx((4 / 6 + 0) / 2) and interval is None  # too few episodes
    value, (low, high) = class_means(["a", "a", "b"] * 9, counts * 9)
    assert value == pytest.approx((4 / 6 + 0) / 2) and low < value < high


def test_predictions_are_scored(voc, tmp_path):
    config = Config(str(voc), "pascal", 1, count=6)
    whole = evaluate_episodes(
        Oracle(), config, groups=("withheld",), out=tmp_path / "a", progress=False
    )
    file = tmp_path / "a/rows.jsonl"
    assert (
        evaluate_episodes(None, config, groups=("withheld",), predictions=file, progress=False)
        == whole
    )
