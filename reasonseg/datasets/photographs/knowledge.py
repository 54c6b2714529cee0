"""What is said of the things in photographs (`knowledge.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

HELD = 4  # of the wordings, every so many is kept for evaluation


@dataclass(frozen=True)
class Thing:
    """What is said of one name; the entries are explained in `knowledge.yaml`."""

    name: str
    plural: str
    groups: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    def wordings(self, training: bool) -> list[tuple[str, str]]:
        """(`for` or `is`, wording) that training asks with, or those that evaluation does."""
        found = []
        for kind, listed in (("for", self.uses), ("is", self.facts)):
            # short lists are for training alone
            found += [
                (kind, text) for i, text in enumerate(listed) if (i % HELD == HELD - 1) != training
            ]
        return found


@cache
def things() -> dict[str, Thing]:
    """Every name that is known."""
    file = Path(__file__).with_name("knowledge.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: Thing(
            name,
            said.get("plural", name + "s"),
            tuple(said.get("group", ())),
            tuple(said.get("also", ())),
            tuple(said.get("for", ())),
            tuple(said.get("is", ())),
        )
        for name, said in content.items()
    }


def thing(name: str) -> Thing:
    """What is known of a name; a thing without anything for a name that is not known."""
    return things().get(name, Thing(name, name if name.endswith("s") else name + "s"))


GROUPS = {  # what a group is called
    "animal": (
        "animals",
        "every animal",
        "the animals",
        "all living creatures with fur or feathers",
    ),
    "vehicle": ("vehicles", "every vehicle", "the means of transport"),
    "furniture": ("furniture", "the furniture", "every piece of furniture"),
    "food": ("food", "everything edible", "the food", "all I could eat here"),
    "fruit": ("fruit", "the fruit", "all pieces of fruit"),
    "electronics": ("electronics", "the electronic devices", "all the gadgets"),
    "appliance": ("appliances", "the kitchen appliances", "the household appliances"),
    "sports equipment": ("sports equipment", "the sports gear", "all that is for sports"),
    "cutlery": ("cutlery", "the cutlery", "the silverware"),
    "dishes": ("dishes", "the dishes", "the crockery and glasses"),
    "clothes": ("clothes", "the clothes", "every piece of clothing"),
    "footwear": ("footwear", "the footwear"),
    "bag": ("bags", "the bags", "all the luggage and bags"),
    "toy": ("toys", "the toys", "all the playthings"),
    "sweets": ("sweets", "the sweets"),
}
