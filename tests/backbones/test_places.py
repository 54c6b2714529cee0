"""Words to places: every family's form, every broken form that was seen, and any text at all."""

import random

import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonseg.backbones.speakers.places.family import families, family_of, framed
from reasonseg.backbones.speakers.places.frames import FRAMES, Frame, Seen, box_in_pixels
from reasonseg.backbones.speakers.places.grammars import GRAMMARS
from reasonseg.backbones.speakers.places.reading import read_places
from reasonseg.errors import InputError

SIZE = (480, 640)
SEEN = Seen(SIZE, SIZE, SIZE, (476, 644))
THOUSAND = (64.0, 24.0, 128.0, 72.0)  # 100, 50, 200, 150 of a thousand


def read(text, family="qwen3-vl", seen=SEEN):
    return read_places(text, families()[family], seen)


def boxes(text, family="qwen3-vl", seen=SEEN):
    return [p.box for p in read(text, family, seen).places]


WELL_FORMED = {  # family -> (answer, box in pixels, points)
    "qwen2-vl": (
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(100,50),(200,150)<|box_end|>",
        THOUSAND, [],
    ),
    "qwen2.5-vl": ('```json\n[{"bbox_2d": [161, 119, 322, 238], "label": "dog"}]\n```',
                   (160, 120, 320, 240), []),
    "qwen3-vl": ('[{"bbox_2d": [100, 50, 200, 150], "label": "dog"}]', THOUSAND, []),
    "glm-v": ('[{"bbox_2d": [100, 50, 200, 150], "label": "dog"}]', THOUSAND, []),
    "internvl": ("<ref>dog</ref><box>[[100, 50, 200, 150]]</box>", THOUSAND, []),
    "deepseek-vl2": ("<|ref|>dog<|/ref|><|det|>[[333, 111, 666, 555]]<|/det|>",
                     (213.33, 53.33, 426.67, 266.67), []),
    "gemini": ('```json\n[{"box_2d": [50, 100, 150, 200], "label": "dog"}]\n```', THOUSAND, []),
    "paligemma": ("<loc0256><loc0128><loc0512><loc0640><seg001> dog", (80, 120, 400, 240), []),
    "florence-2": ("</s><s>dog<loc_100><loc_50><loc_200><loc_150></s>",
                   (64.32, 24.24, 128.32, 72.24), []),
    "kosmos-2": ("<phrase>dog</phrase><object><patch_index_0044><patch_index_0863></object>",
                 (250, 22.5, 630, 397.5), []),
    "molmo": ('<point x="25.0" y="50.0" alt="dog">dog</point>', None, [(160, 240, 1)]),
    "molmo2": ('<points coords="1 1 250 500">dog</points>', None, [(160, 240, 1)]),
    "minicpm-v": ("<ref>dog</ref><box>100 50 200 150</box>", THOUSAND, []),
    "seg-zero": (
        '<think>two dogs</think><answer>{"bbox":[210,210,420,420],"points_1":[252,252],'
        '"points_2":[300,300]}</answer>',
        (160, 120, 320, 240), [(192, 144, 1), (228.57, 171.43, 1)],
    ),
    "seg-r1": (
        "<think>t</think> <bbox>[192,192,384,384]</bbox>, <points>[[240,240],[700,700]]</points>, "
        "<labels>[1,0]</labels>",
        (160, 120, 320, 240), [(200, 150, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(families()) - {"smolvlm"}))
def test_every_family_is_read_in_its_own_form(name):
    text, box, points = WELL_FORMED[name]
    found = read(text, name)
    assert found.status == "found" and len(found.places) == 1 and not found.flags
    place = found.places[0]
    if box is None:
        assert place.box is None
    else:
        assert np.allclose(place.box, box, atol=0.01)
    assert np.allclose(np.array(place.points).reshape(-1, 3), np.array(points).reshape(-1, 3), 1e-3)


def supervised(vlm, result, **options):
    return sv.Detections.from_vlm(vlm, result=result, resolution_wh=(640, 480), **options).xyxy


def test_the_well_formed_agree_with_supervision():
    """An independent reader of the same forms."""
    V = sv.detection.vlm.VLM
    cases = [
        (V.QWEN_2_5_VL, "qwen2.5-vl", {"input_wh": (644, 476)}, 0.01),
        (V.QWEN_3_VL, "qwen3-vl", {}, 0.01),
        (V.PALIGEMMA, "paligemma", {}, 1.0),
        (V.DEEPSEEK_VL_2, "deepseek-vl2", {}, 1.0),
        (V.GOOGLE_GEMINI_2_0, "gemini", {}, 1.0),
    ]
    for vlm, name, options, most in cases:
        text = WELL_FORMED[name][0].replace("<seg001>", "")  # it wants all 16 or none
        theirs, ours = supervised(vlm, text, **options), np.array(boxes(text, name))
        assert theirs.shape == ours.shape and np.abs(theirs - ours).max() <= most, name


A6 = [  # (text, family, status, number of places)
    ('Sure! Here:\n```json\n[{"bbox_2d": [1, 2, 30, 40]}]\n```\nDone.', "qwen3-vl", "found", 1),
    ('[{"bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [50, 60, 70, 80]}, {"bbox_2d": [9, 1', "qwen3-vl",
     "found", 2),
    ('{"boxes":[{"box_2d":[1,2,30,40],"label":"a"},{"box_2d":[5', "gemini", "found", 1),
    ("<answer>{bbox: [10,100,200,210], points_1: [30,110]}</answer>", "seg-zero", "found", 1),
    ("<answer>{'bbox':[10,100,200,210],'points_1':[30,110]}</answer>", "seg-zero", "found", 1),
    ('<answer>{"bbox":[10,100,200,210],"points_1":[]}</answer>', "seg-zero", "found", 1),
    ('<answer>{"bbox":[10,100,200,210],"points_1":[30,110],"points_3":[40,120]}</answer>',
     "seg-zero", "found", 1),
    ('[{"bbox_2d": [1, 2, 30, 40]}]}', "qwen3-vl", "found", 1),
    ('[{"bbox_2d": [1, 2, 30, 40]}] [{"bbox_2d": [9, 9, 90, 90]}]', "qwen3-vl", "found", 1),
    ('<think>[{"bbox_2d": [7, 7, 8, 80]}]</think>[{"bbox_2d": [1, 2, 30, 40]}]', "qwen3-vl",
     "found", 1),
    ('<think>it is at [{"bbox_2d": [1, 2, 30, 40]}]', "qwen3-vl", "found", 1),
    ("<|ref|>a<|/ref|><|det|>[[220, <|ref|>b<|/ref|><|det|>[[1,2,30,40]]<|/det|>", "deepseek-vl2",
     "found", 1),
    ('[{"bbox_2d": [950, 900, 1040, 1010]}]', "qwen3-vl", "found", 1),
    ('[{"box_2d": [150, 200, 50, 100]}]', "gemini", "found", 1),
    ('[{"bbox_2d": [0, 0, 1000, 1000]}]', "qwen3-vl", "found", 1),
    ("There are none.", "molmo2", "absent", 0),
    ("No object found.", "qwen3-vl", "absent", 0),
    ("[]", "qwen3-vl", "absent", 0),
    ("null", "qwen3-vl", "absent", 0),
    ("The dog is not present in the image.", "qwen3-vl", "absent", 0),
]  # fmt: skip


@pytest.mark.parametrize("text, family, status, count", A6)
def test_what_was_seen_in_the_wild(text, family, status, count):
    found = read(text, family)
    assert (found.status, len(found.places)) == (status, count), found


def test_what_is_mended_is_flagged():
    assert "clamped" in read('[{"bbox_2d": [950, 900, 1040, 1010]}]').flags
    assert "sorted" in read('[{"box_2d": [150, 200, 50, 100]}]', "gemini").flags
    assert "whole picture" in read('[{"bbox_2d": [0, 0, 1000, 1000]}]').flags
    row = ",".join(f'{{"bbox_2d": [{x}, 400, {x + 50}, 500]}}' for x in range(0, 900, 100))
    assert "marching boxes" in read(f"[{row}]").flags


FORTY = [
    "```json\n[]\n```", "```\n{}\n```", '{"boxes": []}', "None", "none", "N/A", "Nothing.", "no",
    "I cannot find a dog here.", "I'm unable to locate any dog.", "There isn't any dog.",
    "No such object exists.", "The picture does not contain a dog.", "<REJ>", "[REJ]",
    '[{"bbox_2d": "[1, 2, 30, 40]"}]', '[{"bbox_2d": ["1", "2", "30", "40"]}]',
    '{"bbox_2d": [[1, 2], [30, 40]]}', '{"bbox_2d": [[1, 2, 30, 40], [5, 6, 70, 80]]}',
    "[[1, 2, 30, 40]]", "(1, 2), (30, 40)", "The dog is at [1, 2, 30, 40].",
    '{"x1": 1, "y1": 2, "x2": 30, "y2": 40}', '{"objects": [{"bbox": [1, 2, 30, 40]}]}',
    '{"bbox_2d": [1, 2, 30, 40], }', "{'bbox_2d': (1, 2, 30, 40)}", '{"bbox_2d": [1, 2, 30, 40]',
    '"bbox_2d": [1, 2, 30, 40]', "bbox=[1, 2, 30, 40]", '{"point_2d": [30, 40]}',
    '{"bbox_2d": [1, 2, 30, NaN]}', '{"bbox_2d": [1, 2, Infinity, 4]}', '{"bbox_2d": [1, 2]}',
    '{"bbox_2d": null}', '{"bbox_2d": [1e400, 2, 3, 4]}', "<box>", "<|box_start|>(1,2),(", "{{{{",
    "]]]]", "<think>", "<answer></answer>", "\x00\x01", "🐕" * 50, "<loc0001><loc0002>",
    '<points coords="1 1">', '<point x="">', "<patch_index_9999><patch_index_0001>", "[" * 5000,
    '{"a":' * 3000, "9" * 5000, "(" * 6000 + "1", "[1,2,3,4" * 800,
]  # fmt: skip
ABSENT, FOUND = FORTY[:15], FORTY[15:30]


@pytest.mark.parametrize("family", sorted(families()))
def test_malformed_strings_never_raise(family):
    for text in FORTY:
        assert read(text, family).status in ("found", "absent", "unparseable")


def test_malformed_strings_mean_what_they_can():
    assert [t for t in ABSENT if read(t).status != "absent"] == []
    assert [t for t in FOUND if read(t).status != "found"] == []
    rest = {t: read(t).status for t in FORTY[30:]}
    assert rest.pop('{"bbox_2d": null}') == "absent"
    assert {rest.pop('{"bbox_2d": [1, 2]}'), rest.pop("<|box_start|>(1,2),(")} == {
        "found"
    }  # points
    assert set(rest.values()) == {"unparseable"}, rest


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("[]{}(),:\"'<>|/ .0123456789abxyloc_bbox2d-\n"), max_size=120)
)
def test_any_text_is_read(text):
    for name in GRAMMARS:
        GRAMMARS[name](text)
    for family in ("qwen3-vl", "gemini", "florence-2", "paligemma"):
        for place in read(text, family).places:
            if place.box is not None:
                x0, y0, x1, y1 = place.box
                assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480


def test_a_good_answer_is_read_wherever_it_is_cut():
    whole = "".join(
        f'{{"bbox_2d": [{k}, {k}, {k + 90}, {k + 70}], "label": "d{k}"}}, '
        for k in range(0, 500, 100)
    )
    text = f"[{whole[:-2]}]"
    rng = random.Random(0)
    for cut in rng.sample(range(1, len(text)), 60):
        complete = text[:cut].count("}")
        assert len(read(text[:cut]).places) >= complete, text[:cut]


def test_frames_bring_a_box_back_from_every_shape():
    """A picture that was resized and padded: what a model would say, in every frame."""
    seen = Seen((300, 900), (450, 900), (300, 900), (448, 896))
    box = (90.0, 30.0, 450.0, 240.0)
    for name, frame in FRAMES.items():
        for order in ("xyxy", "yxyx"):
            numbers = said_in(frame, box, seen)
            numbers = numbers if order == "xyxy" else [numbers[k] for k in (1, 0, 3, 2)]
            read_back, flags = box_in_pixels(tuple(numbers), frame, order, seen)
            assert np.allclose(read_back, box, atol=1e-6) and not flags, name


def said_in(frame: Frame, box, seen: Seen) -> list[float]:
    """The inverse of `Frame.point`, written from the definitions."""
    numbers = []
    for k, value in enumerate(box):
        axis = 1 - k % 2
        given_px = value / seen.size[axis] * seen.covered[axis]
        if frame.pixels == "given":
            numbers.append(given_px)
        elif frame.pixels == "fed":
            numbers.append(given_px / seen.given[axis] * seen.fed[axis])
        else:
            numbers.append(given_px / seen.given[axis] * frame.top - (0.5 if frame.half else 0))
    return numbers


def test_a_frame_of_pixels_needs_to_know_what_was_fed():
    unknown = Seen(SIZE, SIZE, SIZE)
    found = read('[{"bbox_2d": [1, 2, 30, 40]}]', "qwen2.5-vl", unknown)
    assert found.status == "unparseable" and "frame unknown" in found.flags


def test_families_are_found_by_name_then_by_type():
    assert family_of("Qwen/Qwen2.5-VL-7B-Instruct").name == "qwen2.5-vl"
    assert family_of("VisionReasoner-7B", "qwen2_5_vl").name == "seg-zero"
    assert family_of("my-finetune", "qwen3_vl").name == "qwen3-vl"
    assert family_of("something", "else").name == "unknown"
    assert family_of("x", named="molmo").name == "molmo"
    with pytest.raises(InputError, match="family 'nope'"):
        family_of("x", named="nope")
    with pytest.raises(InputError, match="frame 'inches'"):
        framed(families()["molmo"], "inches")
