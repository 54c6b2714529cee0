"""The house rules that a machine can hold: imports go down, there is no circle, files and
functions stay small.
"""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "reasonseg"
FILES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))
FLOORS = (  # from the ground up: a room imports from floors below its own
    {"errors", "moved", "runtime"},
    {"structures", "config"},
    {"nn"},
    {"backbones", "prompters", "decoders", "datasets"},
    {"checkpoints"},
    {"segmenters"},
    {"evaluation"},
    {"training"},
    {"serving"},
    {"cli"},
    {"__main__"},
)
# one file a kind
STRANGERS = (
    "backbones",
    "prompters",
    "decoders",
    "datasets",
    "training/objectives",
    "cli",
)
# what the files of such a room may import of their own room
SHARED = (
    "base",
    "options",
    "synthetic",
    "language",
    "layouts",
    "photographs",
    "speakers",
)


def place(file: Path) -> list[str]:
    return list(file.relative_to(PACKAGE).with_suffix("").parts)


@cache
def modules() -> dict[str, Path]:
    names = {".".join(["reasonseg", *place(f)]).removesuffix(".__init__"): f for f in FILES}
    assert len(names) == len(FILES)
    return names


@cache
def imports(file: Path) -> tuple[str, ...]:
    """The modules of ours that a file imports anywhere in it, in functions and for type checkers
    too.
    """
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reasonseg":
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found += [name if name in modules() else node.module for name in inner]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in modules()]
    return tuple(dict.fromkeys(found))


def floor(room: str) -> int:
    found = [i for i, names in enumerate(FLOORS) if room in names]
    assert found, f"reasonseg/{room} stands on no floor; add it to FLOORS"
    return found[0]


def test_the_walk_sees_files():
    assert len(FILES) > 90 and len(RECIPES) > 8
    assert {place(f)[0] for f in FILES} - {"__init__"} == {
        room for names in FLOORS for room in names
    }
    assert sum(len(imports(f)) for f in FILES) > 300
    assert "reasonseg.structures.query" in imports(PACKAGE / "segmenters" / "embedding.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(place(f)))
def test_imports_go_down(file):
    here = place(file)
    if here == ["__init__"]:
        return  # the front door
    room = "/".join(here[:-1])
    for name in imports(file):
        there = name.split(".")[1:]
        if there and there[0] != here[0]:
            assert floor(there[0]) < floor(here[0]), (
                f"{'/'.join(here)} imports {name}, which is not below it"
            )
        elif room in STRANGERS and name.startswith("reasonseg." + room.replace("/", ".") + "."):
            inside = there[len(here) - 1]
            assert inside in SHARED or here[-1] in ("main", "__main__"), (
                f"{'/'.join(here)} imports its sibling {name}"
            )


def test_no_module_is_in_a_circle():
    names, done, path = modules(), set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for inner in imports(names[name]):
            if inner in names and inner != "reasonseg":
                visit(inner)
        done.add(path.pop())

    for name in names:
        if name != "reasonseg":
            visit(name)
    assert len(done) == len(names) - 1


def test_recipes_are_outside():
    """Research uses the package; the package does not know of it."""
    for file in FILES:
        roots = {
            (node.module or "").split(".")[0]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert not roots & {"recipes", "scripts", "tests"}, file


@pytest.mark.parametrize("file", [*FILES, *RECIPES], ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_are_small(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, (
        f"{file.name} has {len(text.splitlines())} lines: is it two files?"
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{file.name}: {node.name} is {length} lines"


def test_images_are_opened_in_one_place():
    places = {
        f.relative_to(PACKAGE).as_posix()
        for f in FILES
        if "Image.open(" in f.read_text(encoding="utf-8")
    }
    assert places == {"structures/images.py"}  # with its limits and its list of formats


def test_the_top_of_the_package_reads_as_a_table_of_contents():
    entries = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert len(entries) <= 20 and not [name for name in entries if "util" in name]


@pytest.mark.parametrize(
    "word",
    [
        ".cuda()",
        ".half()",
        ".bfloat16()",
        "trust_remote_code",
        "pickle.load",
        "except:",
        "object.__setattr__",
    ],
)
def test_words_that_do_not_occur(word):
    assert not [f for f in FILES if word in f.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "room",
    ["backbones", "prompters", "decoders", "segmenters", "checkpoints", "checkpoints/released"],
)
def test_parts_are_not_asked_for_attributes(room):
    """What a part can do is written in its Protocol: `hasattr` would make a contract that nobody
    can read.
    """
    assert not [
        f for f in (PACKAGE / room).glob("*.py") if "hasattr(" in f.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize(
    "file", [*sorted((ROOT / "scripts").glob("*.py")), *RECIPES], ids=lambda f: f.stem
)
def test_every_script_loads(file):
    """What it takes from the package is there."""
    importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.stem not in ("__init__", "__main__")], ids=lambda f: f.stem
)
def test_tests_mirror_the_rooms(file):
    """Every room has its folder of tests."""
    assert (ROOT / "tests" / place(file)[0]).is_dir() or len(place(file)) == 1


def test_text_files_have_an_encoding():
    """Without one, the locale of a system decides what a file says."""
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    for file in [*FILES, *RECIPES, *scripts]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
            text = called in ("read_text", "write_text") or (
                called == "open" and any(m in ("r", "w", "a", "x") for m in modes)
            )
            named = any(k.arg == "encoding" for k in node.keywords)
            assert named or not text, f"{file}, line {node.lineno}: no encoding"
