"""Questions about annotated photographs with true answers, in many wordings.

Levels: `name`, `refer` (place, size, colour, neighbour), `reason` (by use or by what is true of a
thing), `multi` (all of a kind, two kinds, a group), and `absent`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reasonseg.datasets.photographs.colours import COLOURS, shares_of
from reasonseg.datasets.photographs.knowledge import GROUPS, thing, things
from reasonseg.datasets.photographs.records import Object
from reasonseg.datasets.photographs.views import View

LEVELS = ("name", "refer", "reason", "multi", "absent")
NAMED = (
    "{a}", "the {a}", "the {a}", "where is the {a}?", "find the {a}", "segment the {a}",
    "show me the {a}", "mark the {a} please", "Can you segment the {a} in this image?",
    "please outline the {a}", "I want the {a}", "point at the {a}", "Select the {a}.",
    "cut out the {a}", "which part of the picture is the {a}?", "the {a} in this photo",
    "highlight the {a}", "mask of the {a}", "Where can I see the {a}?", "get me the {a}",
)  # fmt: skip
ALL = (
    "all the {p}", "every {a}", "the {p}", "all {p} in the picture", "each {a}", "both {p}",
    "mark every {a}", "show all of the {p}", "where are the {p}?", "find all {p}",
    "select all the {p} please", "the {p} here",
)  # fmt: skip
FOR = (
    "what can I use to {x}?", "something to {x}", "what would I need to {x}?",
    "I want to {x}. What should I take?", "what here lets me {x}", "which thing is used to {x}?",
    "what could somebody use to {x}?", "what do people need to {x}", "I'd like to {x}",
    "what helps to {x}?", "If you want to {x}, what do you need?", "where could I {x}?",
    "find something with which to {x}", "what is there to {x}?", "which of these is meant to {x}",
)  # fmt: skip
IS = (
    "the thing that {x}", "what {x}?", "which one {x}?", "something that {x}",
    "find what {x}", "what in this picture {x}?", "which thing here {x}?", "mark what {x}",
    "what do you see that {x}?", "show me what {x}", "which of them {x}?", "the one that {x}",
)  # fmt: skip
SIDES = {
    "left": ("on the left", "on the far left", "leftmost", "to the left"),
    "right": ("on the right", "on the far right", "rightmost", "to the right"),
    "top": ("at the top", "highest up", "topmost"),
    "bottom": ("at the bottom", "lowest down", "at the bottom of the picture"),
    "big": ("biggest", "largest", "closest to the camera", "in front"),
    "small": ("smallest", "farthest away", "in the back", "tiniest"),
    "middle": ("in the middle", "in the centre", "between the others"),
}
BEFORE = ("leftmost", "rightmost", "topmost", "biggest", "largest", "smallest", "tiniest")
NEAR = ("next to the {b}", "beside the {b}", "near the {b}", "by the {b}", "close to the {b}")
WORN = ("in {c}", "wearing {c}", "dressed in {c}", "in the {c} clothes")
SMALL = 0.0015  # of the picture: things below are not asked for
MARGIN = 0.08  # of the picture's side, by which a place has to be clear


@dataclass(frozen=True)
class Question:
    """A question, its answer with a `<SEG>` for each of `masks`, and the names behind them."""

    level: str
    text: str
    answer: str
    masks: list[np.ndarray]
    names: tuple[str, ...] = ()


class PhotoAsker:
    """Asks about one view. `training` chooses which wordings of uses and facts are asked with.

    `often`: how often each name is in the photographs. With it, half of the questions about absent
    things ask for names as often as they are there elsewhere, so that the name alone does not tell
    the answer.
    """

    def __init__(
        self,
        view: View,
        rng: np.random.Generator,
        training: bool = True,
        often: dict[str, int] | None = None,
    ):
        self.view, self.rng, self.training, self.often = view, rng, training, often or {}
        self.area = view.content[0] * view.content[1]
        self.by_name: dict[str, list[Object]] = {}
        for found in view.objects:
            if found.name:
                self.by_name.setdefault(found.name, []).append(found)
        self.seen = [n for n, of in self.by_name.items() if self._share(of) >= SMALL]
        self.here = view.present | set(self.by_name)

    def ask(self, level: str) -> Question | None:
        """A question of a level; None where the view has nothing to ask for."""
        return getattr(self, f"_{level}")()

    def _name(self) -> Question | None:
        if not self.seen:
            return None
        name = self._pick(self.seen)
        return self._of(name, "name", self._pick(NAMED).format(a=self._called(name)))

    def _multi(self) -> Question | None:
        way = self.rng.random()
        if way < 0.4:
            several = [n for n in self.seen if len(self.by_name[n]) > 1]
            if not several:
                return None
            name = self._pick(several)
            said = self._pick(ALL)
            if said.startswith("both") and len(self.by_name[name]) != 2:
                said = "all the {p}"
            text = said.format(a=name, p=thing(name).plural)
            return self._of(name, "multi", text)
        if way < 0.75:
            if len(self.seen) < 2:
                return None
            some = self._some(self.seen, 3 if self.rng.random() < 0.25 else 2)
            said = [f"the {self._called(n)}" for n in some]
            lead = self._pick(("", "", "find ", "segment ", "show me ", "mark ", "where are "))
            return self._of_several(some, lead + _joined(said))
        groups = {g for n in self.seen for g in thing(n).groups if g in GROUPS}
        groups = {g for g in groups if self._knows(g)}
        if not groups:
            return None
        group = self._pick(sorted(groups))
        mine = [n for n in self.by_name if group in thing(n).groups]
        lead = self._pick(("", "", "find ", "segment ", "show me ", "mark "))
        return self._of_several(mine[:4], lead + self._pick(GROUPS[group][1:])) if mine else None

    def _reason(self) -> Question | None:
        able = [n for n in self.seen if self._wordings(n)]
        if not able:
            return None
        name = self._pick(able)
        if any(self._alike(name, other) for other in self.by_name if other != name):
            return None
        return self._of(name, "reason", self._riddle(name))

    def _absent(self) -> Question | None:
        known = sorted(n for n in self.view.known if n in things() and n not in self.here)
        if not known:
            return None
        if self.often and self.rng.random() < 0.5:
            weights = np.array([self.often.get(n, 0) + 0.5 for n in known])
            known = [known[int(self.rng.choice(len(known), p=weights / weights.sum()))]]
        way = self.rng.random()
        if way < 0.25 and (question := self._wrong_colour()) is not None:
            return question
        if way < 0.6:
            lonely = [
                n for n in known
                if self._wordings(n) and not any(self._alike(n, other) for other in self.here)
            ]  # fmt: skip
            if lonely:
                return self._nothing(self._riddle(self._pick(lonely)))
        said = [self._pick([n, *self._common(n)]) for n in known]
        words = {w for name in self.here for w in (name, *thing(name).also)}
        said = [s for s in said if s not in words]
        if not said:
            return None
        text = self._pick(NAMED if self.rng.random() < 0.85 else ALL)
        name = self._pick(said)
        return self._nothing(text.format(a=name, p=thing(name).plural))

    def _refer(self) -> Question | None:
        order = [self._by_place, self._by_colour, self._by_neighbour]
        for i in self.rng.permutation(3):
            if (question := order[int(i)]()) is not None:
                return question
        return None

    def _by_place(self) -> Question | None:
        several = [
            n for n in self.seen
            if 2 <= len(self.by_name[n]) <= 8 and not self.by_name[n][0].stuff
        ]  # fmt: skip
        if not several:
            return None
        name = self._pick(several)
        found = self.by_name[name]
        middles = np.array([_middle(o.mask) for o in found]) / self.view.image.shape[0]
        sizes = np.log([o.mask.sum() for o in found])
        axis = {
            "left": -middles[:, 0], "right": middles[:, 0], "top": -middles[:, 1],
            "bottom": middles[:, 1], "big": sizes, "small": -sizes,
        }  # fmt: skip
        able: list[tuple[str, int]] = []
        for side, values in axis.items():
            first, second = np.argsort(-values)[:2]
            clear = 0.5 if side in ("big", "small") else MARGIN
            if values[first] - values[second] > clear:
                able.append((side, int(first)))
        if len(found) == 3 and np.ptp(middles[:, 0]) > 4 * MARGIN:
            able.append(("middle", int(np.argsort(middles[:, 0])[1])))
        able = [(s, i) for s, i in able if found[i].mask.sum() >= SMALL * self.area]
        if not able:
            return None
        side, which = able[int(self.rng.integers(len(able)))]
        words = self._pick(SIDES[side])
        called = self._called(name)
        said = f"{words} {called}" if words in BEFORE else f"{called} {words}"
        return Question(
            "refer", self._led(said), f"The {name} <SEG>.", [found[which].mask], (name,)
        )

    def _by_colour(self) -> Question | None:
        able = []
        for name in self.seen:
            found = [o for o in self.by_name[name] if o.mask.sum() > SMALL * self.area]
            if thing(name).groups[:1] == ("animal",) and self.rng.random() < 0.5:
                continue
            shares = [shares_of(self.view.image, self._coloured(name, o.mask)) for o in found]
            for colour in COLOURS:
                mine = [i for i, s in enumerate(shares) if s.get(colour, 0) > 0.55]
                rest = [s for i, s in enumerate(shares) if i not in mine]
                if mine and all(s.get(colour, 0) < 0.15 for s in rest):
                    able.append((name, colour, [found[i].mask for i in mine], bool(rest)))
        if not able:
            return None
        chosen = [a for a in able if a[3]] or able
        name, colour, masks, _ = chosen[int(self.rng.integers(len(chosen)))]
        return Question(
            "refer", self._led(self._in_colour(name, colour)),
            f"The {name if len(masks) == 1 else thing(name).plural} <SEG>.",
            [np.logical_or.reduce(masks)], (name,),
        )  # fmt: skip

    def _by_neighbour(self) -> Question | None:
        able = []
        for name in self.seen:
            found = self.by_name[name]
            if not 2 <= len(found) <= 6 or found[0].stuff:
                continue
            for other in self.seen:
                beside = self.by_name[other]
                if other == name or len(beside) != 1 or beside[0].stuff:
                    continue
                gaps = [_gap(o.mask, beside[0].mask) / self.view.image.shape[0] for o in found]
                first, second = np.argsort(gaps)[:2]
                if gaps[first] < 0.05 and gaps[second] > gaps[first] + 1.5 * MARGIN:
                    able.append((name, other, found[int(first)].mask))
        if not able:
            return None
        name, other, mask = able[int(self.rng.integers(len(able)))]
        said = f"{self._called(name)} {self._pick(NEAR).format(b=self._called(other))}"
        return Question("refer", self._led(said), f"The {name} <SEG>.", [mask], (name,))

    def _wrong_colour(self) -> Question | None:
        for name in self._some(self.seen, 3):
            if name not in self.view.known:
                continue
            shares = [
                shares_of(self.view.image, self._coloured(name, o.mask)) for o in self.by_name[name]
            ]
            free = [c for c in COLOURS if all(s.get(c, 0) < 0.03 for s in shares)]
            if free and thing(name).groups:
                return self._nothing(self._led(self._in_colour(name, self._pick(free))))
        return None

    def _in_colour(self, name: str, colour: str) -> str:
        called = self._called(name)
        if name == "person":
            return f"{called} {self._pick(WORN).format(c=colour)}"
        return f"{colour} {called}"

    def _coloured(self, name: str, mask: np.ndarray) -> np.ndarray:
        """The part of a thing whose colour is meant: of a person, the clothes of the upper body."""
        if name != "person":
            return mask
        rows = np.flatnonzero(mask.any(1))
        low, high = rows[0], rows[-1] + 1
        part = np.zeros_like(mask)
        part[low + (high - low) // 4 : low + (high - low) // 2] = True
        return mask & part

    def _riddle(self, name: str) -> str:
        kind, words = self._wordings(name)[int(self.rng.integers(len(self._wordings(name))))]
        return self._pick(FOR if kind == "for" else IS).format(x=words)

    def _wordings(self, name: str) -> list[tuple[str, str]]:
        return thing(name).wordings(self.training)

    def _alike(self, name: str, other: str) -> bool:
        """Whether what is true of one name may be true of another one."""
        mine, its = thing(name), thing(other)
        vague = {"food", "clothes", "animal", "vehicle", "electronics", "appliance", "toy"}
        vague |= {"sports equipment", "furniture"}
        same = (set(mine.groups) & set(its.groups)) - vague
        return bool(same) or bool({*mine.also, name} & {*its.also, other})

    def _knows(self, group: str) -> bool:
        """Whether everything of a group would be annotated."""
        return all(n in self.view.known for n, t in things().items() if group in t.groups[:1])

    def _of(self, name: str, level: str, text: str) -> Question:
        found = self.by_name[name]
        said = thing(name)
        return Question(
            level, self._styled(text), f"The {name if len(found) == 1 else said.plural} <SEG>.",
            [np.logical_or.reduce([o.mask for o in found])], (name,),
        )  # fmt: skip

    def _of_several(self, names: list[str], text: str) -> Question:
        parts, masks = [], []
        for name in names:
            found = self.by_name[name]
            parts.append(f"the {name if len(found) == 1 else thing(name).plural} <SEG>")
            masks.append(np.logical_or.reduce([o.mask for o in found]))
        answer = _joined(parts)
        return Question(
            "multi", self._styled(text), answer[0].upper() + answer[1:] + ".", masks, tuple(names)
        )

    def _nothing(self, text: str) -> Question:
        return Question("absent", self._styled(text), "<REJ>.", [])

    def _led(self, said: str) -> str:
        lead = ("the ", "the ", "find the ", "segment the ", "where is the ", "show me the ", "")
        return self._pick(lead) + said

    def _styled(self, text: str) -> str:
        """Capitals and full stops as people set them, or don't."""
        way = self.rng.random()
        if way < 0.25:
            text = text[0].upper() + text[1:]
        if 0.15 < way < 0.35 and text[-1].isalpha():
            text += "."
        elif way > 0.85:
            text = text.rstrip("?.")
        return text

    def _called(self, name: str) -> str:
        return self._pick([name, name, *self._common(name)])

    def _common(self, name: str) -> list[str]:
        """Other names that are no narrower than the name itself."""
        if name == "person":
            return ["human", "someone"]
        narrow = {"sports ball", "bird", "bear", "sheep", "cow", "sandwich"}
        return [] if name in narrow else list(thing(name).also[:3])

    def _share(self, found: list[Object]) -> float:
        return sum(int(o.mask.sum()) for o in found) / self.area

    def _pick(self, listed):
        return listed[int(self.rng.integers(len(listed)))]

    def _some(self, listed: list[str], count: int) -> list[str]:
        order = self.rng.permutation(len(listed))
        return [listed[int(i)] for i in order[:count]]


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _middle(mask: np.ndarray) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    """The distance between the boxes of two masks, in pixels; 0 where they overlap."""
    gaps = []
    for axis in (0, 1):
        a, b = (np.flatnonzero(m.any(axis)) for m in (one, other))
        gaps.append(max(a[0] - b[-1], b[0] - a[-1], 0))
    return float(np.hypot(*gaps))
