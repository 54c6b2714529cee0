"""Conversations: what is remembered, corrected, taken back, and kept apart."""

import json

import numpy as np
import pytest

from reasonseg import InputError, Query
from reasonseg.serving.session import Session
from reasonseg.structures.masks import from_rle


@pytest.fixture
def told(segmenter, scenes):
    session = Session(segmenter, scenes[0].query.image)
    session.ask(scenes[0].query.text)
    return session


def test_history_is_what_was_said_about_this_picture(segmenter, scenes):
    session = Session(segmenter, scenes[0].query.image, memory=2)
    assert session.history == ()
    first = session.ask("the cup")
    assert session.history == (("the cup", first.text),)
    second = session.ask("the tree")
    expected = segmenter(
        Query(scenes[0].query.image, "the tree", history=(("the cup", first.text),))
    )
    assert second.text == expected.text and np.array_equal(second.masks, expected.masks)
    session.ask("the dog")
    assert [q for q, _ in session.history] == ["the tree", "the dog"]
    session.look(scenes[1].query.image)
    assert session.history == ()


def test_interleaved_conversations_answer_as_if_alone(segmenter, scenes):
    def talk(session, turns):
        return [session.ask(text) for text in turns]

    turns = ["the cup", "the animal", "what keeps you dry"]
    pictures = [scenes[k].query.image for k in (0, 1)]
    alone = [talk(Session(segmenter, p, memory=2), turns) for p in pictures]
    sessions = [Session(segmenter, p, memory=2) for p in pictures]
    mixed = [[s.ask(text) for s in sessions] for text in turns]
    for k in range(2):
        for a, b in zip(alone[k], (row[k] for row in mixed), strict=True):
            assert a.text == b.text and np.array_equal(a.masks, b.masks)


def test_a_correction_starts_from_the_mask_and_its_clicks_add_up(told):
    before = told.turns[-1].answer.masks[0].copy()
    query, clicks = told.correction(points=[(4, 4, 1)])
    assert query.previous is not None and np.array_equal(query.previous, before) and query.text
    told.correct(points=[(4, 4, 1)])
    assert (told.turns[-1].answer.masks[0] ^ before).any()
    query, clicks = told.correction(points=[(9, 9, 0)])
    assert clicks == [(4, 4, 1), (9, 9, 0)] and len(query.points) == 2
    told.undo()
    assert np.array_equal(told.turns[-1].answer.masks[0], before)


def test_a_box_draws_again(told):
    assert told.correct(boxes=[(2, 2, 60, 60)]).masks.shape == told.turns[0].answer.masks.shape


def test_what_cannot_be_corrected(segmenter, scenes, told):
    with pytest.raises(InputError, match="there is no mask 3"):
        told.correct(points=[(1, 1, 1)], mask=3)
    with pytest.raises(InputError, match="needs a point or a box"):
        told.correct()
    with pytest.raises(InputError, match="ask first"):
        Session(segmenter, scenes[0].query.image).correct(points=[(1, 1, 1)])
    with pytest.raises(InputError, match="no picture yet"):
        Session(segmenter).ask("the cup")


def test_text_is_heard_before_the_masks(segmenter, scenes):
    said = []
    answer = Session(segmenter, scenes[0].query.image).ask(
        scenes[0].query.text, on_text=said.append
    )
    assert (
        said
        and said[-1] == answer.text
        and all(len(a) <= len(b) for a, b in zip(said, said[1:], strict=False))
    )


def test_batched_questions_are_heard_apart(segmenter, scenes):
    said: dict[int, str] = {}
    queries = [s.query for s in scenes[:4]]
    answers = segmenter.batch(queries, on_text=lambda i, text: said.__setitem__(i, text))
    assert [said[i] for i in range(4)] == [a.text for a in answers]


def test_saved_whole(told, tmp_path):
    told.save(tmp_path / "s")
    turns = json.loads((tmp_path / "s/session.json").read_text(encoding="utf-8"))
    assert turns[0]["question"] == told.turns[0].query.text
    assert np.array_equal(
        from_rle(turns[0]["objects"][0]["segmentation"]), told.turns[0].answer.masks[0]
    )
    assert (tmp_path / "s/turn-1/overlay.png").is_file()


def test_undo_to_the_beginning(told):
    assert told.undo() is not None and told.undo() is None


def test_corrections_are_no_questions_and_trials_change_nothing(segmenter, scenes):
    session = Session(segmenter, scenes[0].query.image, memory=4)
    session.ask(scenes[0].query.text)
    for k in range(3):
        session.correct(points=[(5 + k, 5, 1)])
    assert len(session.history) == 1
    trial = session.copy()
    trial.look(scenes[1].query.image)
    assert session.image is scenes[0].query.image and session.references == []
    session.take(trial)
    assert session.image is trial.image
