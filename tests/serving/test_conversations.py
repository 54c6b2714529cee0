"""What a server keeps of conversations: so many, so old, so large."""

import numpy as np
import pytest

from reasonseg import Answer, Query
from reasonseg.serving import session
from reasonseg.serving.conversations import Conversations
from reasonseg.serving.session import Session

SIDE = 20
PICTURE = SIDE * SIDE * 3


class Model:
    class settings:
        memory = 0


def talk(number=0):
    return Session(Model, np.full((SIDE, SIDE, 3), number, np.uint8))


def answered(talk, image=None):
    if image is not None:
        talk.look(image)
    return talk.keep(
        Query(talk.image, "x"),
        Answer("<SEG>.", np.ones((1, SIDE, SIDE), bool), [1.0], ["x"], "found"),
    )


def test_the_one_unused_for_longest_goes_first():
    kept = Conversations(limit=2)
    first, second = kept.open(talk()), kept.open(talk())
    assert kept.find(first) is not None
    third = kept.open(talk())
    assert (
        kept.find(second) is None and kept.find(first) is not None and kept.find(third) is not None
    )
    assert kept.close(first) and not kept.close(first) and len(kept) == 1


def test_those_left_alone_go(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("reasonseg.serving.conversations.time.monotonic", lambda: clock[0])
    kept = Conversations(seconds=10)
    name = kept.open(talk())
    clock[0] = 9.0
    assert kept.find(name) is not None
    clock[0] = 18.0
    assert kept.find(name) is not None
    clock[0] = 28.5
    assert kept.find(name) is None and len(kept) == 0


def test_pictures_are_counted_and_the_oldest_conversations_make_room():
    kept = Conversations(budget=3 * PICTURE)
    names = [kept.open(talk(k)) for k in range(4)]
    assert [kept.find(n) is not None for n in names] == [False, True, True, True]
    grown = kept.find(names[3])
    for k in range(5):
        answered(grown.session, np.full((SIDE, SIDE, 3), k, np.uint8))
    assert kept.find(names[3]) is grown and len(kept) == 1, (
        "it alone is larger than the budget, and is being used"
    )


def test_one_picture_is_counted_once_and_old_turns_go(monkeypatch):
    one = talk()
    answered(one), answered(one)
    assert one.nbytes == PICTURE + 2 * SIDE * SIDE
    monkeypatch.setattr(session, "MAX_BYTES", 3 * (PICTURE + SIDE * SIDE))
    for k in range(6):
        answered(one, np.full((SIDE, SIDE, 3), k, np.uint8))
        assert one.nbytes <= session.MAX_BYTES
    assert len(one.turns) == 3


@pytest.mark.parametrize("turns", [session.MAX_TURNS + 5])
def test_turns_are_counted(turns):
    one = talk()
    for _ in range(turns):
        answered(one)
    assert len(one.turns) == session.MAX_TURNS
