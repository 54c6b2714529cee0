"""Figures of a Python package's layout: code_report.py [PACKAGE ...].

Entries at the top level, modules in import cycles, functions over 60 lines, lines over 100 columns,
the share of public docstrings with a shape, and the share of windows of 8 code lines that occur
more than once.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from pathlib import Path

SHAPE = re.compile(r"`?\[[a-z0-9_*.,+ -]+\]`?")
WINDOW = 8


def modules_of(package: Path) -> dict[str, Path]:
    """The modules of a package, by dotted name."""
    lead = package.name
    return {
        ".".join([lead, *f.relative_to(package).with_suffix("").parts]).removesuffix(".__init__"): f
        for f in sorted(package.rglob("*.py"))
    }


def imports_of(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the same package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in known else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & set(known)


def in_circles(known: dict[str, Path]) -> set[str]:
    """The modules in an import cycle; the package's own `__init__` is left out."""
    edges = {name: imports_of(file, known) for name, file in known.items() if "." in name}
    found = set()
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            name = todo.pop()
            if name in seen or name not in edges:
                continue
            seen.add(name)
            todo += edges[name]
        found |= {start} & seen
    return found


def public_docstrings(file: Path) -> list[str | None]:
    """Docstrings of public functions and classes, None where one is missing."""
    nodes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [ast.get_docstring(n) for n in tree if isinstance(n, nodes) and n.name[0] != "_"]


def long_functions(file: Path) -> int:
    """The number of functions over 60 lines."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    functions = [n for n in tree if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sum((n.end_lineno or 0) - n.lineno + 1 > 60 for n in functions)


def repeated(files: list[Path]) -> float:
    """The share of windows of code lines that occur more than once, 0..1."""
    windows: Counter[tuple[str, ...]] = Counter()
    for file in files:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        lines = [s for s in lines if len(s) > 3 and not s.startswith(("#", "import ", "from "))]
        windows.update(tuple(lines[i : i + WINDOW]) for i in range(len(lines) - WINDOW + 1))
    total = sum(windows.values())
    return sum(count for count in windows.values() if count > 1) / max(total, 1)


def report(package: Path) -> dict[str, str]:
    """The figures of one package, by name."""
    known = modules_of(package)
    files = list(known.values())
    texts = [f.read_text(encoding="utf-8") for f in files]
    docs = [doc for f in files for doc in public_docstrings(f)]
    shapes = sum(bool(doc and SHAPE.search(doc)) for doc in docs) / max(len(docs), 1)
    top = [p for p in package.iterdir() if p.name != "__pycache__"]
    return {
        "entries at the top level": str(len(top)),
        "modules": str(len(files)),
        "modules in a circle of imports": str(len(in_circles(known))),
        "longest file": f"{max(len(t.splitlines()) for t in texts)} lines",
        "functions over 60 lines": str(sum(map(long_functions, files))),
        "lines over 100 columns": str(sum(len(s) > 100 for t in texts for s in t.splitlines())),
        "public docstrings": f"{100 * sum(d is not None for d in docs) / len(docs):.1f} %",
        "public docstrings with a shape": f"{100 * shapes:.1f} %",
        "repeated windows of 8 lines": f"{100 * repeated(files):.2f} %",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", type=Path, default=[Path("reasonseg")])
    found = [report(package.resolve()) for package in parser.parse_args().packages]
    for name in found[0]:
        print(f"{name:34}" + "".join(f"{figures[name]:>14}" for figures in found))
