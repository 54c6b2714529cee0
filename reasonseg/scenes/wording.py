"""How properties are asked for in training: in more wordings, by keywords, and in wordings half heard."""

from __future__ import annotations

import numpy as np

from reasonseg.scenes.knowledge import Property

HINTS = (  # around one to three keywords of a property
    "something to do with {}",
    "the one to do with {}",
    "what {} makes you think of",
    "what goes with {}",
    "the thing linked to {}",
    "whatever has to do with {}",
    "the one that suggests {}",
    "something about {}",
    "a thing of {}",
)
HINTED, BLURRED = 14, 16  # questions by keywords, and half-heard ones, that a property offers beside its wordings
LOST = (0.3, 0.8)  # the share of words that a half-heard wording loses, half of them to words from elsewhere


def taught(prop: Property, rng: np.random.Generator) -> tuple[str, ...]:
    """All wordings for training, and hints made of keywords."""
    return (*prop.wordings, *prop.more, *(hint(prop.keywords, rng) for _ in range(HINTED if prop.keywords else 0)))


def half_heard(prop: Property, others: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """Wordings with words dropped or exchanged for any of `others`.

    What is left tells little, and what is there to be meant tells the rest: so whoever asks in words never heard is taken to
    mean something that is in the picture. None where there are no other words.
    """
    plain = (*prop.wordings, *prop.more)
    return tuple(blurred(plain[rng.integers(len(plain))], others, rng) for _ in range(BLURRED if others else 0))


def hint(keywords: tuple[str, ...], rng: np.random.Generator) -> str:
    """One to three keywords in a phrase: seldom the same twice, so that it is the words that have to be learnt."""
    *before, last = (keywords[i] for i in rng.choice(len(keywords), rng.integers(1, 4), replace=False))
    return HINTS[rng.integers(len(HINTS))].format(f"{', '.join(before)} and {last}" if before else last)


def blurred(wording: str, others: tuple[str, ...], rng: np.random.Generator) -> str:
    """A wording that has lost a share of its words; at least one of its own is kept."""
    words = wording.split()
    fate = rng.random(len(words)) / rng.uniform(*LOST)
    fate[rng.integers(len(words))] = 1.0
    kept = [w if f >= 1 else others[rng.integers(len(others))] for w, f in zip(words, fate, strict=True) if f >= 0.5]
    return " ".join(kept)
