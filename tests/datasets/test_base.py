"""Training samples of the published sets: what LISA's loaders draw, as a pure function of (seed,
index).
"""

import json

import numpy as np
import pytest
from parity import oracle
from small_data import parts, reason_seg, refer, semantic, vqa

from reasonseg import InputError
from reasonseg.config.schema import parse
from reasonseg.datasets import mix
from reasonseg.datasets.base import ANSWERS, PER_PICTURE, PHRASES, sample_indices
from reasonseg.datasets.parts import Config as Parts
from reasonseg.datasets.reason import Config as Reason
from reasonseg.datasets.refer import Config as Refer
from reasonseg.datasets.semantic import Config as Semantic
from reasonseg.datasets.vqa import Config as Vqa

WRITERS = {
    "reason": (reason_seg, lambda root: Reason(root, "val")),
    "refer": (refer, lambda root: Refer(root, split="val")),
    "semantic": (semantic, Semantic),
    "parts": (parts, Parts),
    "vqa": (vqa, Vqa),
}


def same(a, b):
    return (
        a.id == b.id
        and a.query.text == b.query.text
        and a.truth.text == b.truth.text
        and np.array_equal(a.query.image, b.query.image)
        and np.array_equal(a.truth.masks, b.truth.masks)
    )


@pytest.mark.parametrize("name", WRITERS)
def test_a_stream_is_a_pure_function_of_seed_and_index(name, tmp_path):
    write, config = WRITERS[name]
    config = config(str(write(tmp_path)))
    stream, again, other = config.training(30, 3), config.training(30, 3), config.training(30, 4)
    first = [stream[i] for i in range(30)]
    assert all(same(first[i], again[i]) for i in reversed(range(30)))
    assert not all(same(first[i], other[i]) for i in range(30))
    for start in range(0, 30, PER_PICTURE):
        assert len({id(s.query.image) for s in first[start : start + PER_PICTURE]}) == 1, (
            "one picture, read once"
        )
    assert all(s.truth.text.count("<SEG>") == len(s.truth.masks) for s in first)
    with pytest.raises(IndexError):
        stream[30]


def test_semantic_asks_for_named_classes(tmp_path):
    for name, wanted in (
        ("ade20k", {"wall", "sky"}),
        ("cocostuff", {"car", "bicycle", "motorcycle", "person"}),
        ("mapillary", {"bird", "ground animal", "curb"}),
    ):
        data = Semantic(str(semantic(tmp_path / name, name)), name).build()
        samples = data.training_samples(0, 12, np.random.default_rng(0))
        assert {s.truth.labels[0] for s in samples} <= wanted and len(
            {s.truth.labels[0] for s in samples}
        ) >= 2
        for s in samples:
            value = next(k for k, n in data.names.items() if n == s.truth.labels[0])
            assert np.array_equal(s.truth.masks[0], data.read(0)[1] == value)
            assert s.query.text in {p.format(s.truth.labels[0]) for p in PHRASES}
            assert s.truth.text in {a.format("<SEG>") for a in ANSWERS}
    stuff = Semantic(str(tmp_path / "cocostuff"), "cocostuff").build()
    assert (
        "wall-brick" not in stuff.names.values()
        and stuff.names[0] == "person"
        and stuff.names[181] == "wood"
    )
    assert len(stuff.names) == 182 - 28  # LISA leaves 28 out
    assert Semantic(str(tmp_path / "ade20k")).build().names[150] == "flag"


def test_parts_are_named_in_two_ways(tmp_path):
    data = Parts(str(parts(tmp_path))).build()
    assert data.pictures == 2, "one picture shows nothing to ask for"
    samples = data.training_samples(0, 40, np.random.default_rng(0))
    assert {s.truth.labels[0] for s in samples} == {"mug", "mug handle", "the handle of the mug"}


def test_conversations_carry_what_was_said_before(tmp_path):
    data = Vqa(str(vqa(tmp_path))).build()
    assert data[0].query.history == (("What is it?", "A cup."),) and data[0].truth.text == "Red."
    assert data[1].query.history == () and not len(data[1].truth.masks)
    assert {s.truth.text for s in data.training_samples(0, 20, np.random.default_rng(0))} == {
        "A cup.",
        "Red.",
    }


@pytest.mark.parametrize("which", ["reason_explanatory0.5", "reason_explanatory-1", "refer_3sets"])
def test_everything_lisa_draws_we_draw(which):
    """Each training item of the reference (question, answer, mask) is among ours of that
    picture.
    """
    cases = [
        c
        for c in json.loads(oracle("E_data", "results.json").read_text(encoding="utf-8"))[
            "train_samples"
        ]
        if c["dataset"] == which
    ]
    masks, root = np.load(oracle("E_data", "masks.npz")), str(oracle("E_data", "dataset"))
    assert cases
    if which == "refer_3sets":
        sets = [Refer(root, name, "train").build() for name in ("refcoco", "refcoco+", "refcocog")]
    else:
        explained = 0.5 if which.endswith("0.5") else 0.0
        sets = [
            Reason(root, "train_val" if explained == 0 else "train", explained=explained).build()
        ]
        for data in sets if explained == 0 else ():
            data.explanations = {}
    drawn: dict[tuple, list] = {}
    for k, data in enumerate(sets):
        for picture in range(data.pictures):
            for s in data.training_samples(picture, 1500, np.random.default_rng([k, picture])):
                key = (
                    " ".join(s.query.text.split()),
                    s.truth.text.replace("<SEG>", "[SEG]"),
                    s.query.size,
                )
                drawn.setdefault(key, []).append(s.truth.masks)
    for case in cases:
        wanted = masks[case["masks"]]
        for n, said in enumerate(case["conversations"]):
            question, answer = (
                said.split("USER: <image>\n")[1].removesuffix("</s>").split(" ASSISTANT: ")
            )
            found = drawn.get((" ".join(question.split()), answer, tuple(wanted.shape[1:])))
            assert found is not None, (question, answer)
            truth = wanted[n : n + 1] > 0 if len(wanted) else wanted
            assert any(np.array_equal(m, truth) for m in found), (question, answer)


def test_a_mix_keeps_its_shares_and_its_order(tmp_path):
    tree = {
        "root": str(semantic(vqa(parts(tmp_path)))),
        "sets": {
            "things": {"kind": "semantic"},
            "parts": {"kind": "parts"},
            "talk": {"kind": "vqa"},
        },
        "weights": {"things": 6, "parts": 3, "talk": 1},
    }
    config = parse(mix.Config, tree)
    stream, again = config.training(900, 5), config.training(900, 5)
    names = [stream.of(i) for i in range(900)]
    assert [
        abs(names.count(n) / 900 - share) < 0.06
        for n, share in (("things", 0.6), ("parts", 0.3), ("talk", 0.1))
    ] == [True] * 3
    for start in range(0, 900, PER_PICTURE):
        assert len(set(names[start : start + PER_PICTURE])) == 1
    for i in (899, 4, 500):
        assert same(stream[i], again[i])
    whole = config.build()
    assert len(whole) == 2 + 4 + 2 and whole[0].id.startswith("things: ade20k/")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"weights": {"thinks": 1}}, "no set 'thinks'"),
        ({"weights": {"things": 0}}, "not all 0"),
        ({"weights": {"things": -1}}, "0 or more"),
        ({"sets": {}}, "one data set at least"),
    ],
)
def test_a_mix_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        parse(mix.Config, {"sets": {"things": {"kind": "semantic"}}, **change}).training(3, 0)


def test_nothing_to_ask_for_and_files_that_are_not_there(tmp_path):
    from PIL import Image

    root = semantic(tmp_path)
    for file in (root / "ade20k/annotations/training").glob("*.png"):
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(file)
    with pytest.raises(InputError, match="nothing to ask for"):
        Semantic(str(root)).training(3, 0)[0]
    with pytest.raises(InputError, match="no class that has a name"):
        Semantic(str(root)).build()[0]
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "ade20k/annotations/training/0.png")
    with pytest.raises(InputError, match="is \\[4, 5\\], its picture"):
        Semantic(str(root)).build()[0]
    for cls in (Semantic, Parts, Vqa):
        with pytest.raises(InputError, match="expected"):
            cls(str(tmp_path / "none")).build()
    (root / "vlpart/paco/annotations").mkdir(parents=True)
    (root / "vlpart/paco/annotations/paco_lvis_v1_train.json").write_text(
        '{"images": []}', encoding="utf-8"
    )
    with pytest.raises(InputError, match="not a COCO file"):
        Parts(str(root)).build()


def test_some_takes_all_before_any_again():
    drawn = sample_indices(np.random.default_rng(0), 7, 3)
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]
