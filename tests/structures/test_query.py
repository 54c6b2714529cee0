import json

import numpy as np
import pytest

from reasonseg import Answer, InputError, Query, Reference, Sample
from reasonseg.structures.masks import from_rle


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"text": "  "}, "nothing is asked"),
        ({"text": 3}, "must be a string"),
        ({"text": "x " * 10_000}, "10000 words"),
        ({"boxes": [(5, 5, 2, 9)]}, "x0 < x1"),
        ({"boxes": [(5, 5, 900, 9)]}, "64x48"),
        ({"boxes": [(1, 2, 3)]}, "x0,y0,x1,y1"),
        ({"points": [(70, 2, 1)]}, "64x48"),
        ({"points": [(7, 2, 5)]}, "1 or 0"),
        ({"text": "a", "previous": np.zeros((3, 3), bool)}, "48x64"),
        ({"text": "a", "previous": np.zeros((48, 64))}, "bool"),
        ({"text": "a", "references": ["no"]}, "Reference objects"),
    ],
)
def test_query_names_what_is_wrong(picture, fields, words):
    with pytest.raises(InputError, match=words):
        Query(picture, **fields)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), None]
)
def test_query_refuses_other_images(image):
    with pytest.raises(InputError, match="uint8 RGB"):
        Query(image, "a cat")


def test_a_point_without_a_third_number_is_on_the_thing(picture):
    assert Query(picture, points=[(3, 4)]).points == ((3.0, 4.0, 1),)


def test_reference_wants_exactly_one_annotation(picture):
    mask = np.ones((48, 64), bool)
    Reference(picture, mask=mask, label="mug")
    with pytest.raises(InputError, match="one of mask, boxes, points, scribble; got 0"):
        Reference(picture)
    with pytest.raises(InputError, match="got 2"):
        Reference(picture, mask=mask, boxes=[(0, 0, 4, 4)])
    with pytest.raises(InputError, match="48x48"):
        Reference(picture, mask=mask[:, :48])


@pytest.mark.parametrize("n, status", [(0, "found"), (1, "absent"), (1, "no_seg"), (1, "maybe")])
def test_answer_status_agrees_with_its_masks(n, status):
    with pytest.raises(InputError):
        Answer("", np.zeros((n, 4, 4), bool), [1.0] * n, ["a"] * n, status)


def an_answer(picture):
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 5:20, 10:30] = masks[1, 30:40, 40:60] = True
    return Answer(
        "The cup <SEG>, the dog <SEG>.", masks, [0.9, 0.5], ["cup", "dog"], "found", image=picture
    )


def test_answer_to_dict_round_trips(picture):
    answer = an_answer(picture)
    kept = json.loads(json.dumps(answer.to_dict()))
    assert list(kept) == ["text", "status", "objects", "references", "meta"]
    assert kept["objects"][0]["box"] == [10, 5, 30, 20]
    for entry, mask in zip(kept["objects"], answer.masks, strict=True):
        assert (from_rle(entry["segmentation"]) == mask).all()


def test_answer_save_leaves_only_its_own_masks(picture, tmp_path):
    answer = an_answer(picture)
    answer.save(tmp_path / "o")
    one = Answer(answer.text, answer.masks[:1], [0.9], ["cup"], "found", image=picture)
    one.save(tmp_path / "o")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "answer.json",
        "mask-0.png",
        "overlay.png",
    ]


def test_coco_and_supervision_agree(picture):
    from pycocotools.coco import COCO

    answer = an_answer(picture)
    coco = COCO()
    coco.dataset = answer.to_coco(file_name="a.png")
    coco.createIndex()
    assert (coco.annToMask(coco.loadAnns([2])[0]).astype(bool) == answer.masks[1]).all()
    assert coco.loadAnns([1])[0]["bbox"] == [10, 5, 20, 15]
    things = answer.to_supervision()
    assert (things.mask == answer.masks).all() and list(things.data["class_name"]) == ["cup", "dog"]
    assert np.allclose(things.confidence, [0.9, 0.5])


def test_overlay_shows_the_masks(picture):
    drawn = np.asarray(an_answer(picture).overlay())
    assert drawn.shape[0] >= 48 and drawn.shape[1] >= 480
    factor = drawn.shape[1] // 64
    plain = picture.repeat(factor, 0).repeat(factor, 1)
    changed = (drawn != plain).any(-1)
    assert changed[12 * factor, 20 * factor] and not changed[46 * factor, 2 * factor]


def test_sample_masks_match_its_image(picture):
    with pytest.raises(InputError, match="resize one"):
        Sample(Query(picture, "a"), Answer("<SEG>", np.ones((1, 4, 4), bool), [1], ["a"], "found"))


def test_import_and_help_load_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, reasonseg, reasonseg.cli.main; reasonseg.cli.main.build_parser(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
