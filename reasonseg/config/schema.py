"""Settings: frozen dataclasses filled from YAML and dotted overrides.

Errors name the place of the mistake and the most similar valid name. A component with alternatives
(a backbone, a decoder ...) is a `Kind`: `{"kind": <name of the kind>, ...}`, or the name alone. The
`Config` in the file of that kind defines the other keys. None of the libraries we tried finds kinds
by file name and suggests the most similar key, so this small module does it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from reasonseg.config.kinds import check_kind, config_class, kinds, nearest
from reasonseg.errors import InputError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A selected kind of a room, with its settings (an instance of its `Config`)."""

    kind: str
    config: Any

    def tree(self) -> dict:
        """The plain values for YAML: the kind and its settings."""
        return {"kind": self.kind, **dump(self.config)}


@dataclasses.dataclass(frozen=True)
class Room:
    """Marks a field as a `Kind` of this room: `Annotated[Kind, Room("decoders")]`."""

    name: str


@dataclasses.dataclass(frozen=True)
class NameIn:
    """Marks a field as the name of a kind of this room, without its settings.

    Example: `Annotated[str, NameIn("training.objectives")]`.
    """

    room: str


def parse(cls: type, tree: dict, place: str = "") -> Any:
    """An instance of the dataclass `cls` from plain values.

    `place` is the prefix of names in errors. Raises `InputError` naming the place of an unknown
    setting, a wrong type or a missing value.
    """
    if not isinstance(tree, dict):
        raise InputError(f"{place or 'settings'}: expected names and values, got {tree!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            raise InputError(f"{place or 'settings'}: no setting {key!r}; {nearest(key, names)}")
        values[key] = _value(hints[key], value, f"{place}.{key}" if place else key)
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{place or 'settings'}: {error}") from None


def _value(hint: Any, value: Any, place: str) -> Any:
    if typing.get_origin(hint) is typing.Annotated:
        mark = hint.__metadata__[0]
        if isinstance(mark, Room):
            return _kind(mark, value, place)
        check_kind(mark.room, _plain(str, value, place), place)
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse(hint, value if value is not None else {}, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return (
            None
            if value is None
            else _value(next(a for a in arguments if a is not type(None)), value, place)
        )
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{place}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(f"{place}: expected a list, got {value!r}")
        return origin(_value(arguments[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is dict and arguments[1] is not Any:
        if not isinstance(value, dict):
            raise InputError(f"{place}: expected names with settings, got {value!r}")
        return {name: _value(arguments[1], v, f"{place}.{name}") for name, v in value.items()}
    return value if origin is dict or hint in (dict, Any) else _plain(hint, value, place)


def _kind(room: Room, value: Any, place: str) -> Kind:
    value = {"kind": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or "kind" not in value:
        raise InputError(f"{place}: say a kind, one of {', '.join(kinds(room.name))}")
    rest = {k: v for k, v in value.items() if k != "kind"}
    return Kind(
        value["kind"], parse(config_class(room.name, value["kind"], f"{place}.kind"), rest, place)
    )


def _plain(hint: type, value: Any, place: str) -> Any:
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{place}: expected {hint.__name__}, got {value!r}")
    return value


def read(file: str | Path, overrides: Sequence[str] = ()) -> dict:
    """The settings of a YAML file as nested dicts, with `a.b=value` overrides applied.

    Raises `InputError` where the file is missing or not valid, or where an override is malformed.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file} does not exist; configs/ holds the ones that come with reasonseg")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    return override(tree, overrides)


def override(tree: dict, overrides: Sequence[str]) -> dict:
    """Applies `a.b=value` overrides to nested dicts in place, and returns them.

    A new `kind` drops the settings of the old kind. Raises `InputError` where an override is
    malformed.
    """
    for text in overrides:
        path, mark, value = text.partition("=")
        if not mark:
            raise InputError(
                f"{text!r} is not an override; write name=value, such as train.lr=1e-4"
            )
        *parents, last = path.split(".")
        branch = tree
        for name in parents:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise InputError(f"{path}: {name} holds {branch!r} and has no settings of its own")
        if last == "kind" and branch.get("kind") != value:
            branch.clear()
        branch[last] = yaml.safe_load(value)
    return tree


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two trees of plain values differ: `train.lr 0.0003, now 0.001` for each value."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        return [
            line
            for key in keys
            for line in differences(
                old.get(key, "(not set)"),
                new.get(key, "(not set)"),
                f"{place}.{key}" if place else str(key),
            )
        ]
    return [] if old == new else [f"{place} {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 48 else f"{text[:40]}..."


def _plain_of(value: Any) -> Any:
    if isinstance(value, Kind):
        return value.tree()
    return dump(value) if dataclasses.is_dataclass(value) else value


def dump(config: Any) -> dict:
    """The settings of a dataclass as plain values for YAML."""
    plain = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, tuple | list):
            value = [_plain_of(v) for v in value]
        elif isinstance(value, dict):
            value = {k: _plain_of(v) for k, v in value.items()}
        plain[f.name] = _plain_of(value)
    return plain
