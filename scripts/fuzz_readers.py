"""Mutated files of every layout: each ends in samples or in one line that names the mistake.

    python -m scripts.fuzz_readers [--count 20000] [--seed 0]

Folders of all layouts are written, then values of their JSON, YAML, text and image files are
changed: other types, absurd numbers, missing keys, cut and flipped bytes, other names. Each folder
is read whole, in a process that may take 1 GiB more than it has and 2 seconds each.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from reasonseg.datasets.folder import Config, check
from reasonseg.errors import InputError
from scripts.fuzz_folders import LAYOUTS

SECONDS, MEMORY = 2, 2**30
ODD: list[Any] = [
    None, True, -1, 0, 1, 3.7, 1e308, 10**30, float("nan"), float("inf"), "", "x", "10", "../../x",
    "\x00", "\u2028", "é" * 300, [], {}, [[]], [None], {"a": 1}, [1, 2], "a" * 5000, -1e9,
    [[1e12] * 6],
]  # fmt: skip


def mutated(tree: Any, rng: random.Random) -> Any:
    """A tree of values with one of them changed, removed or repeated."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        tree, key = dict(tree), rng.choice(list(tree))
        how = rng.random()
        if how < 0.15:
            del tree[key]
        elif how < 0.2:
            tree[rng.choice(["x", "", "é", key + " "])] = tree.pop(key)
        else:
            tree[key] = mutated(tree[key], rng)
        return tree
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        tree, at = list(tree), rng.randrange(len(tree))
        how = rng.random()
        if how < 0.1:
            del tree[at]
        elif how < 0.2:
            tree.insert(at, tree[at])
        else:
            tree[at] = mutated(tree[at], rng)
        return tree
    if isinstance(tree, int | float) and rng.random() < 0.4:
        return rng.choice([-tree, tree * 2, tree + 0.5, tree * 1e6, str(tree)])
    return rng.choice(ODD)


def changed(file: Path, data: bytes, rng: random.Random) -> str | None:
    """The text of a file with one value changed; None where it is no text that can be parsed."""
    try:
        if file.suffix in (".json", ".jsonl"):
            lines = data.decode().split("\n") if file.suffix == ".jsonl" else [data.decode()]
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(mutated(json.loads(lines[at]), rng), ensure_ascii=False)
            return "\n".join(lines)
        if file.suffix in (".txt", ".yaml"):
            words = data.decode().split(" ")
            words[rng.randrange(len(words))] = str(rng.choice(ODD))
            return " ".join(words)
    except ValueError:
        pass
    return None


def damage(file: Path, rng: random.Random) -> None:
    """Changes one file."""
    data, how = file.read_bytes(), rng.random()
    changed_text = changed(file, data, rng) if how < 0.7 else None
    if changed_text is not None:
        code = rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "gbk"])
        file.write_bytes(changed_text.encode(code, "replace"))
    elif how < 0.8:
        file.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif how < 0.93 and data:
        flipped = bytearray(data)
        for _ in range(rng.randrange(1, 8)):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        file.write_bytes(bytes(flipped))
    elif how < 0.97:
        file.rename(file.with_name(rng.choice(["._x", "x", "ü.json", "b" + file.suffix.upper()])))
    else:
        file.unlink()


def read(root: Path) -> str:
    """What came of reading a folder: `samples`, `refused`; any other error is raised."""
    try:
        data = Config(str(root)).build()
        check(data)
    except InputError:
        return "refused"
    return "samples"


def attempt(layout: str, seed: int, place: Path) -> str:
    """Writes a folder of a layout, damages it and reads it."""
    rng, root = random.Random(seed), place / "folder"
    shutil.rmtree(root, ignore_errors=True)
    LAYOUTS[layout](root)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if files := sorted(f for f in root.rglob("*") if f.is_file()):
            damage(rng.choice(files), rng)
    signal.alarm(SECONDS)
    try:
        return read(root)
    finally:
        signal.alarm(0)


def run(count: int, first: int = 0, progress: bool = True) -> tuple[Counter, list[str]]:
    """(results by layout, failures) of `count` attempts with seeds from `first` on."""
    seen: Counter = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as place:
        for k in range(count):
            layout, seed = sorted(LAYOUTS)[k % len(LAYOUTS)], first + k
            try:
                seen[layout, attempt(layout, seed, Path(place))] += 1
            except Exception as error:
                seen[layout, type(error).__name__] += 1
                failures.append(f"{layout}, seed {seed}: {error!r:.200}")
                if progress:
                    print(failures[-1], file=sys.stderr)
    return seen, failures


def main() -> None:
    """Runs all attempts and prints the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    run(len(LAYOUTS), 10**6, progress=False)  # what is loaded once is no memory of a file
    held = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    began = time.perf_counter()
    seen, failures = run(options.count, options.seed)
    for (layout, result), count in sorted(seen.items()):
        print(f"{layout:14} {result:12} {count}")
    print(f"{len(failures)} failures in {time.perf_counter() - began:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
