"""Real models of transformers, tiny and random: their processors resize and template, their words
are put into their mouths, and a drawn square comes back within two pixels.
"""

import numpy as np
import pytest
from speakers import Scripted, box_json
from tiny_vlms import MAKERS, says, vlm

from reasonseg import InputError
from reasonseg.backbones.speakers import probing
from reasonseg.backbones.speakers.base import Ledger, Speaker, locate
from reasonseg.backbones.speakers.endpoint import Config as EndpointConfig
from reasonseg.backbones.speakers.local import Config, LocalSpeaker
from reasonseg.backbones.speakers.places.family import Family, families

HEIGHT, WIDTH = 317, 541
BOX = (150.0, 60.0, 310.0, 200.0)
IMAGE = np.full((HEIGHT, WIDTH, 3), 235, np.uint8)
IMAGE[60:200, 150:310] = (220, 30, 30)


def thousand(value, side, top=1000):
    return round(value / side * top)


def words_of(name):
    """What each model says for `BOX`, by the arithmetic of its authors (not by our frames)."""
    x0, y0, x1, y1 = (
        thousand(v, s) for v, s in zip(BOX, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)
    )
    if name == "qwen2_5_vl":
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        high, wide = smart_resize(HEIGHT, WIDTH, 28, 56 * 56, 28 * 28 * 200)
        box = [round(BOX[0] / WIDTH * wide), round(BOX[1] / HEIGHT * high),
               round(BOX[2] / WIDTH * wide), round(BOX[3] / HEIGHT * high)]  # fmt: skip
        return f'```json\n[{{"bbox_2d": {box}, "label": "square"}}]\n```'
    if name == "paligemma":
        bins = [min(int(v / s * 1024), 1023) for v, s in
                ((BOX[1], HEIGHT), (BOX[0], WIDTH), (BOX[3], HEIGHT), (BOX[2], WIDTH))]  # fmt: skip
        return "".join(f"<loc{b:04d}>" for b in bins) + " square"
    if name == "florence2":
        bins = [int(v / (s / 1000)) for v, s in zip(BOX, (WIDTH, HEIGHT) * 2, strict=True)]
        return "square" + "".join(f"<loc_{b}>" for b in bins)
    if name == "kosmos2":
        cell = [int(v / s * 32) for v, s in zip(BOX, (WIDTH, HEIGHT) * 2, strict=True)]
        first, last = cell[1] * 32 + cell[0], cell[3] * 32 + cell[2]
        return (f"<phrase> square</phrase><object><patch_index_{first:04d}>"
                f"<patch_index_{last:04d}></object>")  # fmt: skip
    return {
        "qwen2_vl": "<|object_ref_start|>square<|object_ref_end|><|box_start|>"
                    f"({x0},{y0}),({x1},{y1})<|box_end|>",
        "qwen3_vl": f'[{{"bbox_2d": [{x0}, {y0}, {x1}, {y1}], "label": "square"}}]',
        "glm4v": f'[{{"bbox_2d": [{x0}, {y0}, {x1}, {y1}], "label": "square"}}]',
        "internvl": f"<ref>square</ref><box>[[{x0}, {y0}, {x1}, {y1}]]</box>",
        "gemma3": f'```json\n[{{"box_2d": [{y0}, {x0}, {y1}, {x1}], "label": "square"}}]\n```',
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_drawn_square_comes_back(name):
    model, processor = vlm(name)
    speaker = LocalSpeaker(model, processor, Config())
    assert isinstance(speaker, Speaker) and speaker.family.name != "unknown"
    says(model, processor.tokenizer, words_of(name))
    ledger = Ledger(2)
    reading, error = locate(speaker, IMAGE, "the square", ledger)
    assert not error and reading.status == "found", (reading, ledger.log)
    # Kosmos-2 speaks of cells, a 32nd of the picture
    most = 2.0 if name != "kosmos2" else WIDTH / 32
    assert np.abs(np.array(reading.places[0].box) - np.array(BOX)).max() <= most
    assert "square" in reading.places[0].label
    assert ledger.calls == 1 and ledger.tokens_in > 0 and ledger.tokens_out > 0


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "gemma3"])
def test_a_picture_is_looked_at_once_for_all_calls(name):
    model, processor = vlm(name)
    speaker = LocalSpeaker(model, processor, Config())
    first = speaker.say([IMAGE], "where is the square?", limit=3)
    again = speaker.say([IMAGE], "where is the square?", limit=3)
    speaker.say([IMAGE], "is it red?", limit=3)
    assert speaker.looks == 1 and first.text == again.text
    speaker.say([IMAGE[::-1].copy()], "is it red?", limit=3)
    assert speaker.looks == 2
    bare = LocalSpeaker(*vlm(name), Config())
    assert bare.say([IMAGE], "where is the square?", limit=3).text == first.text


def test_models_without_vision_and_families_that_do_not_ground_are_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                    num_attention_heads=2)
    ).save_pretrained(tmp_path / "words")  # fmt: skip
    with pytest.raises(InputError, match="no model that reads pictures"):
        Config(str(tmp_path / "words")).build("cpu")
    with pytest.raises(InputError, match="nothing at"):
        Config(str(tmp_path / "nothing")).build("cpu")
    assert not families()["smolvlm"].grounds


def test_a_saved_model_is_opened_by_its_folder(tmp_path):
    model, processor = vlm("qwen2_5_vl")
    folder = tmp_path / "Qwen2.5-VL-tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    speaker = Config(str(folder)).build("cpu")
    assert speaker.family.name == "qwen2.5-vl"
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    wanted = smart_resize(HEIGHT, WIDTH, 28, 56 * 56, 28 * 28 * 200)
    assert speaker.say([IMAGE], "x", limit=2).fed == tuple(wanted)


def test_a_very_long_picture_is_padded_not_squashed():
    model, processor = vlm("qwen2_5_vl")
    speaker = LocalSpeaker(model, processor, Config())
    image = np.full((20, 4000, 3), 200, np.uint8)  # 200:1, which the processor itself refuses
    given, seen = speaker.shape(image)
    reply = speaker.say([given], "x", limit=1)
    assert given.shape[1] / given.shape[0] <= 4 and reply.fed is not None


def talks(frame, order, family):
    """A speaker that sees the probe's square and speaks in a frame."""

    def script(text, pictures):
        red = (pictures[0] == probing.COLOUR).all(-1)
        ys, xs = np.nonzero(red)
        x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        h, w = red.shape
        top = {"unit": 1, "percent": 100, "thousand": 1000, "999": 999, "pixels": None}[frame]
        box = (
            [x0, y0, x1, y1]
            if top is None
            else [x0 / w * top, y0 / h * top, x1 / w * top, y1 / h * top]
        )
        box = box if order == "xyxy" else [box[k] for k in (1, 0, 3, 2)]
        return f'[{{"bbox_2d": {[round(float(v), 3) for v in box]}}}]'

    return Scripted(script, family, name=f"talks-{frame}-{order}")


@pytest.mark.parametrize("order", ["xyxy", "yxyx"])
@pytest.mark.parametrize("frame", ["unit", "percent", "thousand", "pixels"])
def test_the_probe_finds_the_frame(frame, order):
    found = probing.probe(talks(frame, order, Family("unknown")))
    assert (found.frame, found.order) == (frame, order) and found.iou > 0.97


def test_the_probe_refuses_to_guess():
    liar = Scripted(lambda t, p: box_json((0, 0, 30, 30), (720, 1280)), Family("unknown"))
    with pytest.raises(InputError, match="no frame explains"):
        probing.probe(liar)
    with pytest.raises(InputError, match="named no box"):
        probing.probe(Scripted(lambda t, p: "hello", Family("unknown")))
    with pytest.raises(InputError, match="it is down"):
        probing.probe(Scripted(lambda t, p: None, Family("unknown")))


def test_what_a_probe_found_is_used_for_models_that_are_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "cache_folder", lambda: tmp_path)
    probing.keep("mystery", probing.Probed("percent", "yxyx", 0.9, 3))
    probing.keep("qwen3-vl-8b", probing.Probed("percent", "yxyx", 0.9, 3))
    unknown = EndpointConfig("http://127.0.0.1:9/v1", "mystery").build()
    assert (unknown.family.frame, unknown.family.order) == ("percent", "yxyx")
    known = EndpointConfig("http://127.0.0.1:9/v1", "qwen3-vl-8b").build()
    assert known.family.frame == "thousand"  # a known family comes before a probe
    said = EndpointConfig("http://127.0.0.1:9/v1", "mystery", frame="unit").build()
    assert said.family.frame == "unit"
    (tmp_path / "frames.json").write_text("{broken")
    assert EndpointConfig("http://127.0.0.1:9/v1", "mystery").build().family.frame == ""


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_together_is_as_one_by_one(name):
    model, processor = vlm(name)
    speaker = LocalSpeaker(model, processor, Config())
    rng = np.random.default_rng(1)
    asked = [
        ([speaker.shape(rng.integers(0, 255, (*size, 3), np.uint8))[0]], text)
        for size, text in (((90, 140), "the cat"), ((140, 90), "a long phrase about two of them"))
    ]
    plain = speaker.family.plain
    together = speaker.say_all(asked, limit=6, plain=plain)
    assert together == [speaker.say(*a, limit=6, plain=plain) for a in asked]
