"""Finding what a model meant in its words: thinking removed, JSON read however it was broken.

Nothing here raises for any text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

LONGEST = 200_000  # characters that are read of one answer
THINK = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
FENCE = re.compile(r"```[ \t]*(?:json|python|JSON)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
NUMBER = r"[-+]?\d+(?:\.\d+)?"
NONE = (
    r"there (?:are|is) none",
    r"there (?:are|is) no\b",
    r"\bno (?:such )?(?:object|thing|target|"
    r"match|instance|box|bounding box|mask)s?\b",
    r"\bnot (?:present|visible|found|in the (?:image|"
    r"picture|photo))\b",
    r"\b(?:can ?not|can't|could not|couldn't|unable to) (?:find|see|locate|"
    r"detect|identify)\b",
    r"\bdoes(?: not|n't) (?:contain|show|have|include|exist)\b",
    r"\b(?:is|are)(?: not|n't) (?:any|there|shown|visible|present)\b",
    r"\bnone (?:of|found|here)\b",
    r"^\W*(?:none|null|nothing|empty|n/a|absent|no)\W*$",
    r"<rej>",
    r"\[rej\]",
    r"\bnothing\b.*"
    r"\b(?:matches|fits|like that)\b",
)
ABSENT = re.compile("|".join(NONE), re.IGNORECASE)
EMPTY = re.compile(
    r"""^\W*(?:\{\s*["']?\w+["']?\s*:\s*)?(?:\[\s*\]|\{\s*\}|null|None)\s*\}?\W*$""", re.DOTALL
)


def spoken(text: str) -> str:
    """The part of an answer that is meant for the reader: thinking removed, `<answer>` opened.

    Where nothing but thinking is left, that is taken: some servers put the answer there.
    """
    text = text[:LONGEST]
    rest = THINK.sub(" ", text)
    if not rest.strip() and "<think" in text.lower():
        rest = re.sub(r"</?think(?:ing)?>", " ", text, flags=re.IGNORECASE)
    rest = re.sub(r"^.*?</think(?:ing)?>", " ", rest, flags=re.DOTALL | re.IGNORECASE)
    found = ANSWER.search(rest)
    return (found[1] if found else rest).strip()


def says_absent(text: str) -> bool:
    """Whether an answer without places says that the thing is not there."""
    fence = FENCE.search(text)
    text = fence[1] if fence and fence[1].strip() else text
    return bool(EMPTY.match(text) or ABSENT.search(text))


def json_values(text: str) -> list[Any]:
    """The JSON values in a text: of the first fence, else of the text, however broken.

    A value is read by the first of these that works: as JSON; as a Python literal; each complete
    object of a list that was cut off; each object for itself.
    """
    fence = FENCE.search(text)
    for part in ([fence[1]] if fence else []) + [text]:
        found = _values(part)
        if found:
            return found
    return []


def _values(text: str) -> list[Any]:
    start = re.search(r"[\[{]", text)
    if start is None:
        return []
    body = text[start.start() :].strip()
    try:
        return [json.JSONDecoder().raw_decode(body)[0]]  # the first complete value
    except (ValueError, RecursionError):
        pass
    whole = _literal(body)
    if whole is not None:
        return [whole]
    return [value for part in _objects(body) if (value := _object(part)) is not None]


def _literal(text: str) -> Any:
    """A Python literal at the start of a text, or None."""
    end = max(text.rfind("]"), text.rfind("}")) + 1
    part = text[:end] if end else text
    part = re.sub(r"\b(?:null|NaN)\b", "None", part)
    part = re.sub(r"\btrue\b", "True", part)
    part = re.sub(r"\bfalse\b", "False", part)
    if part.count("[") > 5000 or part.count("(") > 5000:
        return None
    try:
        value = ast.literal_eval(part)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return value if isinstance(value, list | dict | tuple) else None


def _objects(text: str) -> Iterator[str]:
    """The innermost-complete `{...}` of a text, outermost first where they are balanced."""
    opened: list[int] = []
    pieces: list[tuple[int, int]] = []
    quote = ""
    for at, letter in enumerate(text):
        if quote:
            if letter == quote and text[at - 1] != "\\":
                quote = ""
        elif letter == '"':
            quote = letter
        elif letter == "{":
            opened.append(at)
        elif letter == "}" and opened:
            pieces.append((opened.pop(), at + 1))
    pieces.sort()
    end = -1
    for start, stop in pieces:
        if start >= end:
            yield text[start:stop]
            end = stop
    if not pieces:  # a single object that was cut off, or lists without objects
        yield text


KEYED = re.compile(
    r"""["']?(bbox_2d|bbox|box_2d|box|point_2d|point|points_?\d?|points)["']?\s*[:=]\s*"""
    r"""[\[(]+\s*((?:[-+\d.]+[\s,;()\[\]]+){1,}[-+\d.]+)\s*[\])]"""
)
LABELLED = re.compile(
    r"""["']?(?:label|name|text|object)["']?\s*[:=]\s*["']?([^"'\n,}\]]{1,200})"""
)


def _object(text: str) -> Any:
    """One object: as JSON, as a literal, or by its keys."""
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        pass
    value = _literal(text)
    if value is not None:
        return value
    found: list[dict[str, Any]] = []
    for key, numbers in KEYED.findall(text):
        values = [float(n) for n in re.findall(NUMBER, numbers)]
        if not found or key in found[-1]:
            found.append({})
        found[-1][key] = values
    labels = LABELLED.findall(text)
    for item, label in zip(found, labels, strict=False):
        item["label"] = label.strip()
    return found or None


def numbers_in(text: str) -> list[float]:
    """All numbers of a text."""
    return [float(n) for n in re.findall(NUMBER, text)]
