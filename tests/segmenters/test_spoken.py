"""Models that say places, and the agent that checks itself."""

import json
import random
import re

import numpy as np
import pytest
from speakers import Boxes, Scripted, box_json

from reasonseg import InputError, Query, Reference, Segmenter
from reasonseg.backbones.speakers.base import SpeakerError
from reasonseg.segmenters import judging
from reasonseg.segmenters.agent import AgentSegmenter
from reasonseg.segmenters.spoken import SpokenSegmenter, SpokenSettings, settings_from
from reasonseg.segmenters.trace import write_trace

IMAGE = np.random.default_rng(0).integers(0, 255, (200, 320, 3), np.uint8)
RIGHT, WRONG = (40.0, 60.0, 120.0, 140.0), (200.0, 20.0, 300.0, 90.0)
SIZE = IMAGE.shape[:2]


def iou(mask, box):
    truth = np.zeros(SIZE, bool)
    truth[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return (mask & truth).sum() / (mask | truth).sum()


def spoken(script, drawer=None):
    return SpokenSegmenter(SpokenSettings(), Scripted(script), drawer or Boxes())


def agent(script, drawer=None, judge=None, calls=6):
    speaker = Scripted(script)
    settings = SpokenSettings("agent", calls=calls)
    return AgentSegmenter(settings, speaker, drawer or Boxes(), Scripted(judge or script))


def test_a_said_box_becomes_a_mask():
    answer = spoken(lambda text, _: box_json(RIGHT, SIZE, "dog"))(Query(IMAGE, "the dog"))
    assert answer.status == "found" and answer.labels == ["dog"] and answer.text == "dog <SEG>."
    assert iou(answer.masks[0], RIGHT) > 0.95
    assert answer.meta["calls"] == 1 and answer.meta["tokens"] == 15


def test_several_things_are_several_masks():
    both = json.loads(box_json(RIGHT, SIZE, "a")) + json.loads(box_json(WRONG, SIZE, "b"))
    answer = spoken(lambda text, _: json.dumps(both))(Query(IMAGE, "things"))
    assert answer.labels == ["a", "b"] and len(answer.masks) == 2


def test_what_cannot_be_read_is_asked_once_more_with_the_error():
    segmenter = spoken(
        lambda text, _: "hm" if "could not be read" not in text else box_json(RIGHT, SIZE)
    )
    answer = segmenter(Query(IMAGE, "the dog"))
    assert answer.status == "found" and answer.meta["calls"] == 2
    assert "hm" in segmenter.speaker.asked[1]
    answer = spoken(lambda text, _: "I like dogs")(Query(IMAGE, "the dog"))
    assert answer.status == "unparseable" and answer.meta["said"] == "I like dogs"
    assert answer.meta["calls"] == 2 and not len(answer.masks)


def test_absent_and_a_speaker_that_is_down():
    assert spoken(lambda text, _: "[]")(Query(IMAGE, "a cat")).status == "absent"
    with pytest.raises(SpeakerError, match="it is down"):
        spoken(lambda text, _: None)(Query(IMAGE, "a cat"))


def test_points_and_boxes_need_no_speaker():
    segmenter = spoken(lambda text, _: None)
    answer = segmenter(Query(IMAGE, boxes=[RIGHT]))
    assert iou(answer.masks[0], RIGHT) > 0.95 and not segmenter.speaker.asked


def test_options_that_are_not_for_it_are_refused():
    segmenter = spoken(lambda text, _: "[]")
    for name, value in (
        ("force_seg", True),
        ("refine", True),
        ("seed", 3),
        ("absent_threshold", 0.2),
    ):
        with pytest.raises(InputError, match=name):
            segmenter(Query(IMAGE, "x"), **{name: value})
    with pytest.raises(InputError, match="reference"):
        segmenter(Query(IMAGE, "x", [Reference(IMAGE, mask=IMAGE[..., 0] > 9)]))
    with pytest.raises(InputError, match="1500 words"):
        segmenter(Query(IMAGE, "x " * 1500))
    with pytest.raises(InputError, match="teacher-forced"):
        segmenter.forced([Query(IMAGE, "x")])


@pytest.mark.parametrize(
    "text, kind, speaker, drawer",
    [
        (
            "speaker:Qwen/Qwen3-VL-2B-Instruct+facebook/sam2.1-hiera-small",
            "spoken",
            {"kind": "local", "source": "Qwen/Qwen3-VL-2B-Instruct"},
            "facebook/sam2.1-hiera-small",
        ),
        (
            "endpoint:http://127.0.0.1:8000/v1#NAME+tiny",
            "spoken",
            {"kind": "endpoint", "url": "http://127.0.0.1:8000/v1", "model": "NAME"},
            "tiny",
        ),
        (
            "agent:http://h:1/v1#N",
            "agent",
            {"kind": "endpoint", "url": "http://h:1/v1", "model": "N"},
            "",
        ),
        (
            "agent:endpoint:http://h:1/v1#N+photo",
            "agent",
            {"kind": "endpoint", "url": "http://h:1/v1", "model": "N"},
            "photo",
        ),
        ("agent:a/b+c/d", "agent", {"kind": "local", "source": "a/b"}, "c/d"),
    ],
)
def test_model_strings(text, kind, speaker, drawer):
    found = settings_from(text)
    assert (found.segmenter, found.speaker, found.drawer) == (kind, speaker, drawer)


def test_a_yaml_file_names_three_models(tmp_path):
    file = tmp_path / "agent.yaml"
    file.write_text(
        "segmenter: agent\nspeaker: {kind: endpoint, url: 'http://127.0.0.1:9/v1', model: a}\n"
        "verifier: {kind: endpoint, url: 'http://127.0.0.1:9/v1', model: b, family: gemini}\n"
        "drawer: tiny\ncalls: 3\n"
    )
    segmenter = Segmenter.from_pretrained(file)
    assert segmenter.settings.calls == 3 and segmenter.verifier.family.name == "gemini"
    assert segmenter.drawer.reads and segmenter.capabilities.references
    for text, word in (
        ("calls: 0", "below 1"),
        ("segmenter: x", "not spoken or agent"),
        ("spaeker: {}", "speaker"),
        ("- 1", "no settings"),
        ("speaker: {kind: telepathy}", "telepathy"),
        ("a: [", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=word):
            Segmenter.from_pretrained(file)
    with pytest.raises(InputError, match="sam does not apply"):
        Segmenter.from_pretrained("agent:x+tiny", sam="y")


def judge(text, pictures):
    """Always right: keeps the mask in the left half, prefers the picture that shows it."""
    if "answers it better" in text:
        return "A"
    facts = json.loads(re.search(r"height: (\[.*?\}\])", text)[1])
    return json.dumps({"keep": [f["number"] for f in facts if f["centre"][0] < 0.5]})


def test_a_verifier_takes_out_what_is_wrong():
    both = json.loads(box_json(WRONG, SIZE)) + json.loads(box_json(RIGHT, SIZE))
    segmenter = agent(lambda text, _: json.dumps(both), judge=judge)
    answer = segmenter(Query(IMAGE, "the dog"))
    assert len(answer.masks) == 1 and iou(answer.masks[0], RIGHT) > 0.95
    steps = [step["step"] for step in answer.meta["trace"]]
    assert steps[:4] == ["propose places", "draw", "gate", "verify"]


def test_what_the_drawer_is_sure_of_needs_no_look():
    segmenter = agent(lambda text, _: box_json(RIGHT, SIZE), Boxes(score=0.9), judge)
    answer = segmenter(Query(IMAGE, "the dog"))
    assert answer.meta["calls"] == 1 and not segmenter.verifier.asked


@pytest.mark.parametrize("drawer", [Boxes(), Boxes({"the dog": WRONG}, 0.9)])
def test_a_proposer_that_is_down_is_an_error_also_where_the_drawer_reads(drawer):
    with pytest.raises(SpeakerError, match="it is down"):
        agent(lambda text, _: None, drawer, judge)(Query(IMAGE, "the dog"))


def test_a_verifier_that_is_down_leaves_the_answer_and_is_told():
    answer = agent(lambda t, _: box_json(RIGHT, SIZE), judge=lambda t, _: None)(
        Query(IMAGE, "the dog")
    )
    assert iou(answer.masks[0], RIGHT) > 0.95
    assert len(answer.meta["errors"]) == 1 and "it is down" in answer.meta["errors"][0]


def test_two_arms_are_judged_with_the_order_swapped():
    drawer = Boxes({"the dog": WRONG, "a dog": WRONG}, 0.6)
    script = lambda text, _: "a dog" if "one to four words" in text else box_json(RIGHT, SIZE)  # noqa: E731
    always_a = agent(script, drawer, judge)(Query(IMAGE, "the dog"))
    assert iou(always_a.masks[0], RIGHT) > 0.95  # A twice is no verdict: the prior stays
    seen = []

    def second(text, pictures):
        if "answers it better" not in text:
            return judge(text, pictures).replace('"keep": []', '"keep": [1]')
        seen.append(text)
        return "B" if len(seen) % 2 else "A"

    answer = agent(script, drawer, second)(Query(IMAGE, "the dog"))
    assert iou(answer.masks[0], WRONG) > 0.95 and answer.meta["calls"] <= 6


def test_a_refusal_of_both_is_absent():
    segmenter = agent(lambda text, _: "[]", judge=judge)
    assert segmenter(Query(IMAGE, "a cat")).status == "absent"
    none = agent(lambda t, _: box_json(RIGHT, SIZE), judge=lambda t, _: '{"absent": true}')
    assert none(Query(IMAGE, "a cat")).status == "absent"
    sure = agent(
        lambda t, _: box_json(RIGHT, SIZE),
        Boxes({"a cat": RIGHT}, 0.9),
        lambda t, _: '{"absent": true}',
    )
    assert sure(Query(IMAGE, "a cat")).status == "found"  # one voice against a sure drawer


def test_an_example_makes_the_check_exact():
    shown = Reference(IMAGE, boxes=[RIGHT])
    drawer = Boxes({"lamp": WRONG, "dog": RIGHT}, 0.6)
    said = iter(["lamp", "dog"])
    segmenter = agent(lambda text, _: next(said), drawer)
    answer = segmenter(Query(IMAGE, references=[shown]))
    assert iou(answer.masks[0], RIGHT) > 0.95 and answer.labels == ["dog"]
    tried = [s for s in answer.meta["trace"] if s["step"] == "check with the example"]
    assert [s["phrase"] for s in tried] == ["lamp", "dog"] and tried[1]["iou"] > 0.95


def test_small_things_get_a_second_look():
    small = (100.0, 100.0, 116.0, 116.0)
    crops = []

    def script(text, pictures):
        if pictures[0].shape != IMAGE.shape:
            crops.append(pictures[0].shape)
            return json.dumps([{"bbox_2d": [300, 300, 700, 700]}])
        return box_json(small, SIZE)

    answer = agent(script, judge=lambda t, _: '{"keep": [1]}')(Query(IMAGE, "the dot"))
    assert crops and answer.status == "found"
    assert any(step["step"] == "look closer" for step in answer.meta["trace"])


WORDS = [
    "",
    "[]",
    "A",
    "B",
    "both",
    "{}",
    '{"keep": [99]}',
    '{"keep": "all"}',
    "[{",
    "\x00",
    "none",
    '{"keep": [1]}',
    '{"absent": true}',
    "<think>",
    "a dog",
    box_json(RIGHT, SIZE),
    None,
]


def test_nothing_that_a_model_says_raises_or_exceeds_the_budget():
    rng = random.Random(2)
    for round_ in range(400):
        calls = rng.randrange(1, 8)
        drawer = rng.choice([Boxes(), Boxes({"a dog": WRONG, "the dog": RIGHT}, rng.random())])
        segmenter = agent(lambda text, _: rng.choice(WORDS), drawer, calls=calls)
        shown = [Reference(IMAGE, boxes=[RIGHT])] if drawer.reads and round_ % 4 == 0 else []
        try:
            answer = segmenter(Query(IMAGE, "the dog", shown))
        except SpeakerError:
            assert not segmenter.speaker.answered
            continue
        assert segmenter.speaker.answered or not segmenter.speaker.asked
        assert answer.meta["calls"] <= calls
        assert len(segmenter.speaker.asked) + len(segmenter.verifier.asked) == answer.meta["calls"]
        assert (answer.status == "found") == bool(len(answer.masks))


def test_the_trace_is_written_and_is_safe_to_open(tmp_path):
    script = lambda text, _: box_json(RIGHT, SIZE, "<script>x</script>")  # noqa: E731
    answer = agent(script, judge=judge)(Query(IMAGE, "<img src=x>"))
    answer.save(tmp_path)
    lines, page = write_trace(answer, tmp_path)
    assert all(json.loads(line) for line in lines.read_text().splitlines())
    text = page.read_text()
    assert "<script" not in text and "<img src=x" not in text and "data:image/jpeg" in text
    assert write_trace(spoken(script)(Query(IMAGE, "x")), tmp_path) == []


def test_verdicts_are_read():
    kept = {
        '{"keep": [1, 3]}': [0, 2],
        '```json\n{"keep": [2]}\n```': [1],
        "[1, 2]": [0, 1],
        '{"keep": []}': [],
        '{"absent": true}': [],
        "Mask 2.": [1],
        "none of them": [],
        "I am not sure": None,
        '{"keep": [9]}': None,
        "{'keep': ['2']}": [1],
    }
    assert {text: judging.kept_of(text, 3) for text in kept} == kept
    won = {"A": "A", "b": "B", "Answer: B": "B", "A or B": None, '{"better": "A"}': "A", "": None}
    assert {text: judging.winner_of(text) for text in won} == won


def test_numbers_are_drawn_inside_of_their_masks():
    mask = np.zeros(SIZE, bool)
    mask[10:190, 10:30] = mask[170:190, 10:300] = True
    x, y = judging.deepest(mask)
    assert mask[int(y), int(x)]
    shown = judging.numbered(IMAGE, mask[None])
    assert shown.shape == IMAGE.shape and (shown != IMAGE).any()
