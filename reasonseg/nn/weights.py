"""Weights that must fit: every missing, left-over or reshaped key is listed and stops the load unless allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from reasonseg.errors import InputError


def from_folder(cls: type, folder: Path, allow: Sequence[str] = (), **options) -> nn.Module:
    """`cls.from_pretrained(folder)`. Raises `InputError` where keys do not fit and no prefix in `allow` covers them."""
    model, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    problems = [("missing", key, "") for key in info["missing_keys"]]
    problems += [("left over", key, "") for key in info["unexpected_keys"]]
    problems += [
        ("reshaped", key, f" is {list(has)}, not {list(wants)}") for key, has, wants in info["mismatched_keys"]
    ]
    refuse(problems, folder, allow)
    return model


def refuse(problems: Sequence[tuple[str, str, str]], folder: Path, allow: Sequence[str]) -> None:
    """Raises `InputError` listing (what, key, detail) unless each key begins with a prefix in `allow`."""
    left = sorted(p for p in problems if not p[1].startswith(tuple(allow)))
    if left:
        listed = "; ".join(f"{what}: {key}{detail}" for what, key, detail in left[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise InputError(f"{folder}: weights do not fit: {listed}{more}; allow=(prefix, ...) goes on regardless")
