"""The list of published numbers is well formed, and what is not here is said, not guessed."""

import subprocess
import sys

import pytest

from reasonseg.cli.main import build_parser
from scripts.reproduce import at, read, verdict

ROWS = read("models", "dataset")


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r["name"])
def test_each_row_is_a_command_of_ours(row):
    options = build_parser().parse_args(row["arguments"])
    assert (
        callable(options.run)
        and 0 < row["expected"] < 1
        and 0 < row["tolerance"] <= 0.03
        and row["source"]
    )


def test_names_are_told_apart():
    assert len({row["name"] for row in ROWS}) == len(ROWS)


def test_what_is_missing_is_said(tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.reproduce",
        "--only",
        "LISA-7B",
        "--models",
        str(tmp_path / "none"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("missing: ") == sum(
        "LISA-7B" in r["name"] for r in ROWS
    )


def test_numbers_are_judged():
    row = {"name": "x", "expected": 0.5, "tolerance": 0.01, "key": "a.b"}
    assert at({"a": {"b": 0.505}}, "a.b") == 0.505 and at({"a": 1}, "a.b") is None
    assert (
        "reached" in verdict(row, 0.505)
        and "off by +0.020" in verdict(row, 0.52)
        and "no a.b" in verdict(row, None)
    )
