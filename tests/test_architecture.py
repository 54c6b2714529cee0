"""The house rules that a machine can hold: imports go down, files and functions stay small."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "reasonseg"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("backbones", "prompters", "decoders", "datasets")
FLOORS = [  # from the ground up; a module may import only from its own floor's name or from floors below
    {"errors", "libraries", "attention"},
    {
        "images",
        "masks",
        "polygons",
        "losses",
        "metrics",
        "config",
        "optimizers",
        "overlay",
        "hub",
        "llama_pieces",
        "quantization",
        "phrasing",
        "cache",
        "processes",
    },
    {"vocabulary", "scenes"},
    {"prompt", "pixels", "speaking", "sheet", "regions", "clip_dense", "exports", "streams", "stepping"},
    {"tokens", "sam_family", "weights", "adapters"},
    {"filling", "frozen", "changes"},
    {"settings"},
    {"runs"},
    {*ROOMS},
    {"asking", "second_looks"},
    {"segmenter"},
    {"released"},
    {"checkpoint", "planning"},
    {"objectives", "doctor", "tables", "rows", "bank"},
    {"evaluate", "benchmarks", "fewshot"},
    {"validation", "trainer"},
    {"sharding"},
    {"train"},
    {"finetune", "inspection"},
    {"serve"},
    {"chat"},
    {"commands"},
    {"cli"},
]
ALLOWED_UPWARD = {  # said here or nowhere: methods of the nouns that borrow, on call, what stands above them
    ("vocabulary", "overlay"), ("vocabulary", "masks"),
}  # fmt: skip


def floor(part: str) -> int:
    found = [i for i, names in enumerate(FLOORS) if part in names]
    assert found, f"reasonseg/{part} stands on no floor; add it to FLOORS"
    return found[0]


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reasonseg":
            rest = node.module.split(".")[1:]
            for name in node.names:
                yield rest or [name.name]
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("reasonseg."):
                    yield name.name.split(".")[1:]


def place(file: Path) -> list[str]:
    return list(file.relative_to(PACKAGE).with_suffix("").parts)


def test_the_walk_sees_files():
    assert len(FILES) > 25
    assert {place(f)[0] for f in FILES} >= {*ROOMS, "scenes", "cli"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(place(f)))
def test_imports_go_down(file):
    here = place(file)
    if here == ["__init__"]:
        return  # the front door
    for there in imports(file):
        if there[0] in ("InputError", "Query", "Reference", "Answer", "Sample", "Segmenter", "__version__"):
            continue
        if there[0] == here[0]:
            assert here[0] not in ROOMS, f"{'/'.join(here)} imports its sibling {'.'.join(there)}"
            continue
        if (here[0], there[0]) in ALLOWED_UPWARD:
            continue
        assert floor(there[0]) < floor(here[0]) or (here[0], there[0]) == ("segmenter", "checkpoint"), (
            f"{'/'.join(here)} imports {'.'.join(there)}, which is not below it"
        )


@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(place(f)))
def test_files_and_functions_are_small(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 420, f"{file.name} has {len(text.splitlines())} lines: is it two rooms?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, (
                f"{file.name}: {node.name} is {node.end_lineno - node.lineno} lines"
            )


@pytest.mark.parametrize("word", [".cuda()", ".half()", ".bfloat16()", "trust_remote_code", "pickle.load", "except:"])
def test_words_that_do_not_occur(word):
    assert not [f for f in FILES if word in f.read_text()]


@pytest.mark.parametrize("file", sorted((PACKAGE.parent / "scripts").glob("*.py")), ids=lambda f: f.stem)
def test_every_script_loads(file):
    """What it takes from the package is there."""
    importlib.import_module(f"scripts.{file.stem}")
