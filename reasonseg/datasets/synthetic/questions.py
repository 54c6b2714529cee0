"""Makes questions about a scene: seven levels with their true answers, and four special levels.

`novel` is the function level in unseen wordings. `missing` is the part of `absent` that asks for
properties, to train more of it. `alike` and `shown` come with references: text together with a
reference image, and a reference image alone.

Every question is a candidate with a pairing (object, wording). A split only uses the pairings that
it owns, so test questions never repeat a pairing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from reasonseg.datasets.synthetic.comparisons import (
    by_name,
    by_noun,
    close,
    extremes,
    related,
    telling,
)
from reasonseg.datasets.synthetic.drawing import Scene
from reasonseg.datasets.synthetic.knowledge import Knowledge, Property
from reasonseg.datasets.synthetic.sprites import HUES, Sprite
from reasonseg.datasets.synthetic.wordings import (
    DEFINITE,
    FRAMES,
    HINTED,
    HINTS,
    RELATIONS,
    SUPERLATIVES,
    WHERE_FRAMES,
    WHY,
)
from reasonseg.structures.markers import REJ, SEG


@dataclass(frozen=True)
class Question:
    """A question of a level, with its true answer.

    `targets` are indices into `scene.objects` in the order of the `<SEG>` of the answer; `()` where
    the object is absent. `about` is the id of the property that the question is about, or empty.
    """

    level: str
    text: str
    answer: str
    targets: tuple[int, ...]
    about: str = ""


@dataclass(frozen=True)
class Candidate:
    """A noun phrase, its answer and its pairing.

    `because` is the property of a property question; the answer starts with it. `frame_counts`:
    the frame around the phrase is part of the wording.
    """

    phrase: str
    answer: str
    targets: tuple[int, ...]
    pairing: tuple[str, str]
    because: str = ""
    frame_counts: bool = False
    about: str = ""


@dataclass
class Asker:
    """Makes questions about scenes.

    `absentees` are the sprites that questions about absent objects may name. `training` adds the
    wordings of properties that are only for training, and hints by keywords.
    """

    knowledge: Knowledge
    absentees: list[Sprite]
    training: bool = False

    def ask(
        self, rng: np.random.Generator, scene: Scene, split: str, level: str
    ) -> Question | None:
        """A random question of `level` that `split` owns, or None where the scene has none."""
        candidates = LEVELS[level](self, scene, rng)
        owned = []
        for candidate in candidates:
            singular = candidate.phrase.startswith("the ") and level != "multi"
            frames = FRAMES + (WHERE_FRAMES if singular else ())
            frame = frames[rng.integers(len(frames))]
            thing, wording = candidate.pairing
            if candidate.frame_counts:
                wording += "|" + frame
            if level in ("novel", "shown") or self.knowledge.owner(thing, wording) == split:
                owned.append((candidate, frame))
        if not owned:
            return None
        candidate, frame = owned[rng.integers(len(owned))]
        if not candidate.phrase:
            return Question(level, "", "", candidate.targets)
        text = frame.format(candidate.phrase)
        text = text[0].upper() + text[1:]
        answer = candidate.answer
        if candidate.because:
            why = rng.random() < 0.4
            if why:
                text = (
                    text.rstrip() + ("" if text[-1] in ".?" else ".") + WHY[rng.integers(len(WHY))]
                )
            answer = _reasoned(candidate.because, answer, why)
        return Question(level, text, answer + ".", candidate.targets, candidate.about)

    def wordings(self, prop: Property, rng: np.random.Generator) -> tuple[str, ...]:
        """The wordings of questions about a property."""
        if not self.training:
            return prop.wordings
        count = HINTED if prop.keywords else 0
        return (*prop.wordings, *prop.more, *(_hint(prop.keywords, rng) for _ in range(count)))

    def properties_of(self, sprite: Sprite) -> dict[str, Property]:
        """The properties of a sprite by id.

        A property that is not in the knowledge file has its own verb phrase as id.
        """
        return {
            key: self.knowledge.properties.get(key) or Property.spoken(key)
            for key in sprite.properties
        }


def _hint(keywords: tuple[str, ...], rng: np.random.Generator) -> str:
    """One to three keywords in a phrase.

    The same phrase is rarely repeated, so that a model learns the keywords and not the phrases.
    """
    *before, last = (
        keywords[i] for i in rng.choice(len(keywords), rng.integers(1, 4), replace=False)
    )
    return HINTS[rng.integers(len(HINTS))].format(
        f"{', '.join(before)} and {last}" if before else last
    )


def _names(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    for noun, group in by_noun(scene).items():
        if len(group) == 1:
            thing = scene.objects[group[0]]
            terms = [noun] + (list(thing.sprite.synonyms) if noun == thing.name else [])
            for term in terms:
                pairing = (thing.name, term)
                yield Candidate(
                    f"the {term}",
                    f"The {thing.name} {SEG}",
                    (group[0],),
                    pairing,
                    frame_counts=True,
                )


def _attributes(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    for noun, group in by_noun(scene).items():
        things = [scene.objects[i] for i in group]
        if len(things) < 2:
            continue
        for k, words in telling(things):
            adjective = (
                words if words.split()[0] not in ("on", "at", "in", "to", "up", "down") else None
            )
            phrase = f"{adjective} {noun}" if adjective else f"{noun} {words}"
            pairing = (things[k].name, words)
            yield Candidate(
                f"the {phrase}", _named(phrase, noun, things[k].name), (group[k],), pairing
            )


def _named(phrase: str, noun: str, thing: str) -> str:
    """The answer to a description; it names the object where the question does not."""
    return f"The {phrase} {SEG}" if thing == noun else f"The {phrase}, the {thing} {SEG}"


def _relations(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    names = by_name(scene)
    centers = np.array([t.center for t in scene.objects])
    for noun, group in by_noun(scene).items():
        if len(group) < 2:
            continue
        for anchor, where in names.items():
            if len(where) > 1 or where[0] in group:
                continue
            for relation, k in related(centers[group], centers[where[0]]):
                for words in RELATIONS[relation]:
                    phrase = f"{noun} {words} the {anchor}"
                    thing = scene.objects[group[k]].name
                    pairing = (thing, f"{words} the {anchor}")
                    yield Candidate(
                        f"the {phrase}", _named(phrase, noun, thing), (group[k],), pairing
                    )


def _comparisons(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    groups = by_noun(scene)
    if len(scene.objects) >= 3:
        groups |= {"thing": list(range(len(scene.objects)))}
    for noun, group in groups.items():
        if len(group) < 2:
            continue
        things = [scene.objects[i] for i in group]
        for key, k in extremes(things).items():
            if k is None:
                continue
            for pattern in SUPERLATIVES[key]:
                phrase = pattern.format(noun)
                thing = things[k].name
                yield Candidate(
                    phrase, _named(phrase[4:], noun, thing), (group[k],), (thing, phrase)
                )


def _alike(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    """Text together with a reference image: which of several copies of its object is meant.

    The text never names the object.
    """
    for name, group in by_name(scene).items():
        things = [scene.objects[i] for i in group]
        if len(things) < 2:
            continue
        colors = [t.color for t in things]
        for k, words in telling(things):
            placed = words.split()[0] in ("on", "at", "in", "to", "up", "down")
            phrase = f"one like this {words}" if placed else f"{words} one like this"
            yield Candidate(f"the {phrase}", f"The {phrase} {SEG}", (group[k],), (name, phrase))
            if words in colors:
                yield Candidate(
                    f"one like this, but {words}",
                    f"The {words} one {SEG}",
                    (group[k],),
                    (name, f"but {words}"),
                )
        for key, k in extremes(things).items():
            if k is None:
                continue
            for pattern in SUPERLATIVES[key]:
                phrase = pattern.format("one like this")
                yield Candidate(
                    phrase, f"{phrase[0].upper()}{phrase[1:]} {SEG}", (group[k],), (name, phrase)
                )


def _shown(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    """No text: all copies of the object of the reference image, as one mask."""
    for name, group in by_name(scene).items():
        yield Candidate("", "", tuple(group), (name, "shown"))


def _functions(
    asker: Asker, scene: Scene, rng: np.random.Generator, wordings: Callable | None = None
) -> Iterator[Candidate]:
    wordings = wordings or (lambda prop: asker.wordings(prop, rng))
    holders: dict[str, list[int]] = {}
    known: dict[str, Property] = {}
    for i, thing in enumerate(scene.objects):
        for key, prop in asker.properties_of(thing.sprite).items():
            holders.setdefault(key, []).append(i)
            known[key] = prop
    for key, group in holders.items():
        if len(group) == 1:
            thing = scene.objects[group[0]].name
            for words in wordings(known[key]):
                answer = f"The {thing} {SEG}"
                yield Candidate(
                    words,
                    answer,
                    (group[0],),
                    (thing, words),
                    because=known[key].because,
                    about=key,
                )


def _reasoned(because: str, answer: str, why: bool = False) -> str:
    """An answer that starts with the property, in the words of the knowledge file.

    All wordings of a property thus lead to the same words before the object is named.
    """
    meant = because if why else because.replace("it ", "what ", 1)
    return f"{meant[0].upper()}{meant[1:]}: {answer[0].lower()}{answer[1:]}"


def _novel(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    return _functions(asker, scene, rng, wordings=lambda p: p.novel)


def _multi(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    objects = scene.objects
    single = [group[0] for group in by_name(scene).values() if len(group) == 1]
    order = [single[i] for i in rng.permutation(len(single))]
    for count in (2, 3):
        if len(order) >= count:
            names = [objects[i].name for i in order[:count]]
            phrase = ", ".join(f"the {n}" for n in names[:-1]) + f" and the {names[-1]}"
            answer = ", ".join(f"{DEFINITE[i > 0]}{n} {SEG}" for i, n in enumerate(names))
            yield Candidate(phrase, answer, tuple(order[:count]), ("+".join(names), "and"))
    for noun, group in by_noun(scene).items():
        if len(group) < 2:
            continue
        group = sorted(group, key=lambda i: objects[i].center[0])
        names = [objects[i].name for i in group]
        answer = ", ".join(f"{DEFINITE[i > 0]}{n} {SEG}" for i, n in enumerate(names))
        kind = noun if noun == names[0] else asker.knowledge.plural(noun)
        forms = (
            ("every {}", "each {}")
            if noun == names[0]
            else ("all the {}", "all {} here", "the {} from left to right")
        )
        for form in forms:
            yield Candidate(form.format(kind), answer, tuple(group), ("+".join(names), form))


def _absent(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    kind = rng.random()
    names = by_name(scene)
    if kind < 0.5:
        present = {*names, *(s for t in scene.objects for s in t.sprite.synonyms)}
        for i in rng.permutation(len(asker.absentees))[:8]:
            sprite = asker.absentees[i]
            if sprite.name not in present:
                for term in (sprite.name, *sprite.synonyms):
                    answer = f"The {sprite.name} {REJ}"
                    yield Candidate(
                        f"the {term}",
                        answer,
                        (),
                        (sprite.name, f"absent {term}"),
                        frame_counts=True,
                    )
    elif kind < 0.75:
        for name, group in names.items():
            colors = [c for i in group if (c := scene.objects[i].color) is not None]
            for color in HUES if len(colors) == len(group) else ():
                if not any(close(color, c) for c in colors):
                    yield Candidate(
                        f"the {color} {name}",
                        f"The {color} {name} {REJ}",
                        (),
                        (name, f"absent {color}"),
                    )
    elif kind < 0.92:
        yield from _missing(asker, scene, rng)
    else:
        for category in sorted(
            {s.category for s in asker.absentees} - {t.sprite.category for t in scene.objects}
        ):
            yield Candidate(
                f"the {category}",
                f"The {category} {REJ}",
                (),
                (category, "absent"),
                frame_counts=True,
            )


def _missing(asker: Asker, scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    """Properties that no object of the scene has."""
    held = {key for t in scene.objects for key in t.sprite.properties}
    missing = [key for key in asker.knowledge.properties if key not in held]
    for i in rng.permutation(len(missing))[:8]:
        prop = asker.knowledge.properties[missing[i]]
        for words in asker.wordings(prop, rng):
            answer = _reasoned(prop.because, f"Nothing here {REJ}")
            yield Candidate(words, answer, (), (missing[i], f"absent {words}"), about=missing[i])


LEVELS: dict[str, Callable[[Asker, Scene, np.random.Generator], Iterator[Candidate]]] = {
    "name": _names,
    "attribute": _attributes,
    "relation": _relations,
    "compare": _comparisons,
    "function": _functions,
    "multi": _multi,
    "absent": _absent,
    "novel": _novel,
    "missing": _missing,
    "alike": _alike,
    "shown": _shown,
}
