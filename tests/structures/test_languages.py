"""Other languages are told where that is sure, and English never is."""

import pytest

from reasonseg.datasets.photographs.knowledge import GROUPS, things
from reasonseg.datasets.photographs.questions import ALL, FOR, IS, NAMED
from reasonseg.structures.languages import foreign


@pytest.mark.parametrize(
    "text, language",
    [
        ("wo ist der Hund?", "German"),
        ("Zeige mir das Auto", "German"),
        ("où est le chien", "French"),
        ("¿dónde está el perro?", "Spanish"),
        ("dove è il cane", "Italian"),
        ("где собака?", "Cyrillic"),
        ("狗在哪里", "Chinese"),
        ("犬はどこですか", "Japanese"),
        ("개는 어디에 있나요", "Korean"),
        ("أين الكلب", "Arabic"),
        ("कुत्ता कहाँ है", "Devanagari"),
    ],
)
def test_other_languages(text, language):
    assert foreign(text) == language


def test_english_is_never_taken_for_another():
    for name, thing in things().items():
        for said in (name, *thing.also, thing.plural):
            for frame in (*NAMED, *ALL):
                assert foreign(frame.format(a=said, p=thing.plural)) is None, (frame, said)
        for training in (True, False):
            for kind, words in thing.wordings(training):
                for frame in FOR if kind == "for" else IS:
                    assert foreign(frame.format(x=words)) is None
    for names in GROUPS.values():
        assert all(foreign(name) is None for name in names)
    for text in ("", "?", "chien", "El Niño", "la croissant", "die", "man on a bench", "42"):
        assert foreign(text) is None
