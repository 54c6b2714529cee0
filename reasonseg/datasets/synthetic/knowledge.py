"""Facts about the objects in scenes, from `knowledge.yaml`: names, synonyms, categories, uses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("knowledge.yaml")


@dataclass(frozen=True)
class Thing:
    """A kind of object: its emoji, category, synonyms and the ids of its properties."""

    name: str
    emoji: str
    category: str
    synonyms: tuple[str, ...]
    properties: tuple[str, ...]


@dataclass(frozen=True)
class Property:
    """A property that many objects share; `because` ("it ...") explains an answer.

    `wordings` are used in training and, for other objects, in evaluation; `novel` only in
    evaluation; `more`, and hints made of `keywords`, only in training.
    """

    because: str
    wordings: tuple[str, ...]
    novel: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    @classmethod
    def spoken(cls, words: str) -> Property:
        """A property of a user's sprite pack, from a verb phrase such as "keeps rain off"."""
        return cls(f"it {words}", (f"something that {words}", f"the thing that {words}"))


@dataclass(frozen=True)
class Knowledge:
    """The content of the knowledge file. `fingerprint` is a hash of the file."""

    things: dict[str, Thing]
    properties: dict[str, Property]
    plurals: dict[str, str]
    fingerprint: str

    @classmethod
    @cache
    def load(cls, file: Path = FILE) -> Knowledge:
        """The content of the file; cached after the first call."""
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
        """Whether an object is never used in training.

        That is every fifth of the file, and every object that is not in the file.
        """
        if name not in self.things:
            return True
        return _rank(tuple(self.things))[name] % 5 == 4

    @cached_property
    def orphans(self) -> frozenset[str]:
        """Wordings whose pairings all belong to the splits for evaluation.

        Training owns these too, because it would otherwise never contain the words.
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
        """The split that owns the pairing of an object and a wording."""
        return "train" if wording in self.orphans else pairing_split(thing, wording)

    def plural(self, noun: str) -> str:
        """The plural of a category."""
        return self.plurals.get(noun, f"{noun}s")


@cache
def _rank(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def pairing_split(thing: str, wording: str) -> str:
    """The split of the pairing of an object and a wording: "train" (8 of 10), "val" or "test".

    It is a hash of both, so it never changes.
    """
    draw = hashlib.blake2b(f"{thing}|{wording}".encode(), digest_size=4).digest()
    return {0: "test", 1: "val"}.get(int.from_bytes(draw) % 10, "train")
