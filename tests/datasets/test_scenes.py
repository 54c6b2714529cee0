import json
import re

import numpy as np
import pytest
from PIL import Image

from reasonseg import InputError
from reasonseg.datasets.scenes import Config, Scenes
from reasonseg.datasets.synthetic.drawing import MIN_VISIBLE, draw_scene
from reasonseg.datasets.synthetic.knowledge import Knowledge, pairing_split
from reasonseg.datasets.synthetic.questions import LEVELS, REJ, SEG, Asker
from reasonseg.datasets.synthetic.sprites import (
    HUES,
    color_of,
    default_pack,
    load_pack,
    main_hue,
    turn_hue,
)

KNOWLEDGE = Knowledge.load()


@pytest.fixture(scope="module")
def sprites(font):
    return default_pack(KNOWLEDGE)


def drawn(sprites, i, size=168):
    return draw_scene(np.random.default_rng([9, i]), sprites, size)


def test_the_knowledge_file_is_rich_and_sound():
    things, properties = KNOWLEDGE.things, KNOWLEDGE.properties
    assert len(things) >= 200 and len(properties) >= 120
    assert all(len(p.wordings) >= 4 and len(p.novel) >= 1 for p in properties.values())
    assert all(key in properties for t in things.values() for key in t.properties)
    assert all(sum(key in t.properties for t in things.values()) >= 3 for key in properties)
    words = [w for p in properties.values() for w in (*p.wordings, *p.more, *p.novel)]
    assert len(words) == len(set(words))
    terms = [w for name, t in things.items() for w in (name, *t.synonyms)]
    assert len(terms) == len(set(terms))
    assert all(t.category in KNOWLEDGE.plurals for t in things.values())


def content(words):
    little = (
        "a an the of in on at to that which what something thing one some any is are it its with "
        "for and or by you your"
    )
    return set(re.findall(r"[a-z']+", words.lower())) - set(little.split())


def test_more_wordings_do_not_give_novel_ones_away():
    taught = [content(w) for p in KNOWLEDGE.properties.values() for w in p.more]
    for novel in (w for p in KNOWLEDGE.properties.values() for w in p.novel):
        words = content(novel)
        nearest = max(taught, key=lambda other: len(words & other) / len(words | other))
        assert len(words & nearest) / len(words | nearest) < 0.6, (novel, nearest)


def test_more_wordings_are_for_training_alone(sprites):
    def asked(training):
        asker = Asker(KNOWLEDGE, sprites, training)
        levels = ("function", "missing", "novel")
        return {
            c.phrase
            for i in range(10)
            for n in levels
            for c in LEVELS[n](asker, drawn(sprites, i), rng(i))
        }

    def rng(i):
        return np.random.default_rng(i)

    more = {w for p in KNOWLEDGE.properties.values() for w in p.more}
    assert len(more) > 1500 and len(asked(True) & more) > 100 and not asked(False) & more
    hinted = asked(True) - asked(False) - more
    keywords = {k for p in KNOWLEDGE.properties.values() for k in p.keywords}
    assert len(hinted) > 100 and all(any(k in phrase for k in keywords) for phrase in hinted)
    assert Scenes(Config("train")).asker.training and not Scenes(Config("test")).asker.training


def test_one_in_five_is_withheld_and_strangers_always():
    kept = [KNOWLEDGE.withheld(name) for name in KNOWLEDGE.things]
    assert 0.18 < np.mean(kept) < 0.22 and KNOWLEDGE.withheld("a thing nobody listed")


def test_every_wording_occurs_in_training():
    trained = [t for t in KNOWLEDGE.things.values() if not KNOWLEDGE.withheld(t.name)]
    for key, prop in KNOWLEDGE.properties.items():
        names = [t.name for t in trained if key in t.properties]
        for words in prop.wordings if names else ():
            assert any(KNOWLEDGE.owner(name, words) == "train" for name in names), words


def test_every_emoji_renders_and_all_differ(sprites):
    assert len(sprites) == len(KNOWLEDGE.things)
    assert len({s.image.tobytes() for s in sprites}) == len(sprites)


def test_equal_generators_give_equal_scenes(sprites):
    a, b, c = drawn(sprites, 1), drawn(sprites, 1), drawn(sprites, 2)
    assert (a.image == b.image).all() and [o.name for o in a.objects] == [o.name for o in b.objects]
    assert a.image.shape != c.image.shape or (a.image != c.image).any()


def test_masks_are_exact(sprites):
    for i in range(12):
        scene = drawn(sprites, i)
        stack = np.array([o.mask for o in scene.objects])
        assert stack.sum(0).max() <= 1  # what is visible belongs to one thing
        for thing in scene.objects:
            assert thing.mask.shape == scene.image.shape[:2]
            assert thing.mask.sum() >= MIN_VISIBLE * thing.area * thing.mask.size - 1


def test_a_layout_is_the_same_at_any_size(sprites):
    small, big = drawn(sprites, 3), drawn(sprites, 3, 336)
    assert [o.name for o in small.objects] == [o.name for o in big.objects]
    for a, b in zip(small.objects, big.objects, strict=True):
        assert np.allclose(a.center, b.center, atol=0.02)


def test_hues_turn_to_the_colour_that_is_said(sprites):
    tintable = [s for s in sprites if s.hue is not None]
    assert len(tintable) > 60
    for sprite in tintable[::9]:
        for color in HUES:
            hue = main_hue(np.asarray(sprite.tinted(color)))
            assert (
                hue is None
                or color_of(hue) == color
                or abs((hue - HUES[color] + 180) % 360 - 180) < 25
            )
    assert (turn_hue(tintable[0].image, 360) == turn_hue(tintable[0].image, 0)).all()


# which has no words
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "shown"])
def test_questions_are_true_and_owned_by_their_split(sprites, level):
    asker = Asker(KNOWLEDGE, sprites)
    seen = 0
    for i in range(60):
        scene = drawn(sprites, i)
        question = asker.ask(np.random.default_rng(i), scene, "train", level)
        if question is None:
            continue
        seen += 1
        assert question.answer.count(SEG) == len(question.targets)
        assert (
            (REJ in question.answer) == (not question.targets) == (level in ("absent", "missing"))
        )
        assert question.text[0].isupper() and question.answer.endswith(".")
        if level == "attribute":
            target = scene.objects[question.targets[0]]
            for color in HUES:
                if f" {color} " in f"{question.text} ":
                    assert target.color == color
        if level == "multi" and question.text.lower().count("every "):
            assert len({scene.objects[t].name for t in question.targets}) == 1
    assert seen >= 5


def test_function_answers_are_the_only_holder(sprites):
    asker, checked = Asker(KNOWLEDGE, sprites), 0
    by_words = {w: key for key, p in KNOWLEDGE.properties.items() for w in p.wordings}
    for i in range(80):
        scene = drawn(sprites, i)
        question = asker.ask(np.random.default_rng(i), scene, "train", "function")
        key = question and next(
            (k for w, k in by_words.items() if w in question.text.lower()), None
        )
        if key:
            assert [k for k, o in enumerate(scene.objects) if key in o.sprite.properties] == list(
                question.targets
            )
            checked += 1
    assert checked > 20


def test_pairings_divide_evenly():
    draws = [pairing_split("cup", f"wording {i}") for i in range(3000)]
    assert 0.77 < draws.count("train") / 3000 < 0.83 and 0.08 < draws.count("test") / 3000 < 0.12


def pack(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((40, 60, 4), np.uint8)
    picture[5:35, 10:50] = (200, 30, 30, 255)
    Image.fromarray(picture).save(folder / "a.png")
    entry = {
        "file": "a.png",
        "name": "gizmo",
        "category": "gadget",
        "properties": ["spins fast"],
        "synonyms": [],
        "colors": [],
    }
    (folder / "index.json").write_text(json.dumps([{**entry, **changes}]), encoding="utf-8")
    return folder


def test_a_pack_of_ones_own_brings_its_words(tmp_path):
    sprite = load_pack(pack(tmp_path))[0]
    assert sprite.image.shape == (30, 40, 4) and sprite.colors == ("red",)
    assert Asker(KNOWLEDGE, [sprite]).properties_of(sprite)["spins fast"].because == "it spins fast"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"file": "../a.png"}, "outside the pack"),
        ({"name": ""}, "'name'"),
        ({"file": "b.png"}, "cannot read"),
        ({"category": 3}, "'category'"),
    ],
)
def test_a_broken_pack_names_the_entry(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        load_pack(pack(tmp_path / "p", **changes))
    assert "entry 0" in str(caught.value)


def test_a_missing_font_names_the_package(monkeypatch):
    from reasonseg.datasets.synthetic import sprites as module

    monkeypatch.setattr(module, "FONT_PLACES", ("/nowhere.ttf",))
    monkeypatch.delenv("REASONSEG_EMOJI_FONT", raising=False)
    with pytest.raises(InputError, match="fonts-noto-color-emoji"):
        module.emoji_font()
