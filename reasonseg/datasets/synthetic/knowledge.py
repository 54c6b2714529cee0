"""What is known of the things in scenes: names, synonyms, categories and what they are for
(`knowledge.yaml`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("knowledge.yaml")


@dataclass(frozen=True)
class Thing:
    """A kind of thing: its emoji, category, other names and the properties it shares with
    others.
    """

    name: str
    emoji: str
    category: str
    synonyms: tuple[str, ...]
    properties: tuple[str, ...]


@dataclass(frozen=True)
class Property:
    """What many things share; `because` ("it ...") explains an answer.

    `wordings` are asked in training and, of other things, in evaluation; `novel` in evaluation
    alone; `more`, and hints made of `keywords`, in training alone.
    """

    because: str
    wordings: tuple[str, ...]
    novel: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    @classmethod
    def spoken(cls, words: str) -> Property:
        """A property brought by a foreign sprite pack, given as a verb phrase such as "keeps
        rain off".
        """
        return cls(f"it {words}", (f"something that {words}", f"the thing that {words}"))


@dataclass(frozen=True)
class Knowledge:
    """The knowledge file, read."""

    things: dict[str, Thing]
    properties: dict[str, Property]
    plurals: dict[str, str]
    fingerprint: str

    @classmethod
    @cache
    def load(cls, file: Path = FILE) -> Knowledge:
        """Reads and caches the file."""
        raw = file.read_bytes()
        tree = yaml.load(raw, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        things = {
            name: Thing(
                name,
                t["emoji"],
                t["category"],
                tuple(t["synonyms"] or ()),
                tuple(t["properties"] or ()),
            )
            for name, t in tree["things"].items()
        }
        properties = {
            key: Property(
                p["because"],
                *(tuple(p[kind]) for kind in ("wordings", "novel", "more", "keywords")),
            )
            for key, p in (tree.get("properties") or {}).items()
        }
        plurals = {name: c["plural"] for name, c in (tree.get("categories") or {}).items()}
        return cls(things, properties, plurals, hashlib.blake2b(raw, digest_size=6).hexdigest())

    def withheld(self, name: str) -> bool:
        """Whether a thing is kept out of training altogether: one in five, and every thing not
        listed here.
        """
        if name not in self.things:
            return True
        return _rank(tuple(self.things))[name] % 5 == 4

    @cached_property
    def orphans(self) -> frozenset[str]:
        """Wordings whose every pairing fell to the other splits; training keeps them, or it
        would never meet the words.
        """
        holders: dict[str, list[str]] = {}
        for name, thing in self.things.items():
            for key in () if self.withheld(name) else thing.properties:
                holders.setdefault(key, []).append(name)
        return frozenset(
            words
            for key, names in holders.items()
            for words in self.properties[key].wordings
            if all(pairing_split(name, words) != "train" for name in names)
        )

    def owner(self, thing: str, wording: str) -> str:
        """The split that may ask for a thing by a wording."""
        return "train" if wording in self.orphans else pairing_split(thing, wording)

    def plural(self, noun: str) -> str:
        """The plural of a category."""
        return self.plurals.get(noun, f"{noun}s")


@cache
def _rank(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def pairing_split(thing: str, wording: str) -> str:
    """The split in which a thing may be asked for by a wording: "train" (8 in 10), "val" or
    "test".
    """
    draw = hashlib.blake2b(f"{thing}|{wording}".encode(), digest_size=4).digest()
    return {0: "test", 1: "val"}.get(int.from_bytes(draw) % 10, "train")
