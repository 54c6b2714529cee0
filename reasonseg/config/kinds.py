"""Finds a component by its name (its kind).

A kind is a file of this package, an entry point of another package, or (only where a run names it)
a dotted path to a module. A room is a folder of alternatives, such as `decoders`: every file in it
that defines the name in `DOORS` is one kind. `decoders/sam.py` is the kind `sam`, and
`decoder: {kind: sam}` in YAML selects it. Your own package adds a kind without a change here:

    [project.entry-points."reasonseg.decoders"]
    mine = "my_package.my_decoder"
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from reasonseg.errors import InputError
from reasonseg.moved import OBJECTIVES

DOORS = {  # room -> the name that each of its files defines
    "backbones": "Config",
    "prompters": "Config",
    "decoders": "Config",
    "segmenters": "Config",
    "backbones.speakers": "Config",
    "datasets": "Config",
    "training.objectives": "OBJECTIVE",
    "checkpoints.released": "FORMAT",
    "cli": "COMMANDS",
}
# rooms that a run names but a saved model does not: a dotted path is accepted too
LOCAL = (
    "datasets",
    "training.objectives",
)


def kinds(room: str) -> list[str]:
    """Sorted names of all kinds of a room: its files and the entry points of other packages."""
    return sorted({*files(room), *_added(room)})


@cache
def files(room: str) -> dict[str, str]:
    """The kinds that are files of a room in this package, with their module names.

    The files are read as text, not imported.
    """
    package = importlib.import_module(f"reasonseg.{room}")
    door = re.compile(rf"^(?:class {DOORS[room]}\b|{DOORS[room]}\b *[:=])", re.MULTILINE)
    found = sorted(Path(package.__path__[0]).glob("*.py"))
    return {
        f.stem: f"reasonseg.{room}.{f.stem}"
        for f in found
        if door.search(f.read_text(encoding="utf-8"))
    }


def _added(room: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"reasonseg.{room}")}


def kind_module(room: str, kind: str, place: str = "kind") -> ModuleType:
    """The module of a kind.

    Raises `InputError` naming `place` where there is no such kind or it cannot be imported.
    """
    if name := files(room).get(kind):
        return importlib.import_module(name)
    if point := _added(room).get(kind):
        name = point.value
    elif "." in str(kind) and room in LOCAL:
        name = kind
        if os.getcwd() not in sys.path:  # a module in the working directory
            sys.path.append(os.getcwd())
    else:
        raise InputError(_unknown(room, str(kind), place))
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{place}: {noun(room)} {kind!r} cannot be imported: {error}") from None
    if not hasattr(module, DOORS[room]):
        raise InputError(f"{place}: {name} is no {noun(room)}: it defines no {DOORS[room]}")
    return module


def check_kind(room: str, kind: str, place: str = "kind") -> None:
    """Raises `InputError` naming `place` where a room has no such kind; imports nothing."""
    if kind not in kinds(room) and not ("." in kind and room in LOCAL):
        raise InputError(_unknown(room, kind, place))


def _unknown(room: str, kind: str, place: str) -> str:
    if room == "training.objectives" and kind in OBJECTIVES:
        return (
            f"{place}: objective {kind!r} is now {OBJECTIVES[kind]!r} (research, outside the "
            "package); use that name"
        )
    dotted = " or a dotted path to a module" if room in LOCAL else ""
    return f"{place}: no {noun(room)} {kind!r}; {nearest(kind, kinds(room))}{dotted}"


def config_class(room: str, kind: str, place: str = "kind") -> type:
    """The class `Config` of a kind. Raises `InputError` where there is no such kind."""
    return kind_module(room, kind, place).Config


def noun(room: str) -> str:
    """The word for one kind of a room in messages, such as `decoder`."""
    return {"datasets": "data set", "checkpoints.released": "format", "cli": "command"}.get(
        room, room.rpartition(".")[2].removesuffix("s")
    )


def nearest(word: str, names: list[str]) -> str:
    """A hint after an unknown name: the most similar name, or else all names."""
    close = difflib.get_close_matches(word, names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
