"""Measures the published figures (`scripts/published.yaml`) for which weights and data exist.

    scripts/reproduce.sh --models DIR --data DIR [--only WORD] [--out out/reproduce]

For the others it prints what is missing. Evaluations resume; rows with the same command share one
run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

PUBLISHED = Path(__file__).with_name("published.yaml")


def read(models: str, data: str) -> list[dict]:
    """The rows, with the folders filled in."""
    rows = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    for row in rows:
        row["needs"] = [place.format(models=models, data=data) for place in row["needs"]]
        row["arguments"] = [
            part.format(models=models, data=data) for part in shlex.split(row["command"])
        ]
    return rows


def measure(arguments: list[str], out: Path) -> dict | None:
    """The summary of a `reasonseg` command, which runs or resumes in its own folder.

    None where it ends with an error.
    """
    place = out / hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:12]
    command = [sys.executable, "-m", "reasonseg.cli", *arguments, "--out", str(place), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{shlex.join(command)} ended with {done.returncode}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def at(summary: dict, key: str) -> float | None:
    """A number in a summary by its dotted key; None where there is none."""
    found = summary
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def verdict(row: dict, value: float | None) -> str:
    """One line of the table."""
    if value is None:
        return f"| {row['name']} | {row['expected']:.3f} | - | the summary has no {row['key']} |"
    off = value - row["expected"]
    judged = (
        "reached"
        if abs(off) <= row["tolerance"]
        else f"off by {off:+.3f}, more than {row['tolerance']}"
    )
    return f"| {row['name']} | {row['expected']:.3f} | {value:.3f} | {judged} |"


def main() -> int:
    """Runs what can be run; returns 1 where a number is off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        default="models",
        help="released weights, each a folder by the name in published.yaml",
    )
    parser.add_argument(
        "--data",
        default="dataset",
        help="LISA's dataset folder, with VOC2012, COCO2014, FSS-1000 beside",
    )
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"))
    options = parser.parse_args()
    rows = [
        row
        for row in read(options.models, options.data)
        if options.only.lower() in row["name"].lower()
    ]
    runs: dict[tuple, dict | None] = {}
    lines = ["| what | published | measured | |", "|---|---|---|---|"]
    for row in rows:
        if missing := [place for place in row["needs"] if not Path(place).exists()]:
            lines.append(
                f"| {row['name']} | {row['expected']:.3f} | - | missing: {', '.join(missing)} |"
            )
            continue
        key = tuple(row["arguments"])
        if key not in runs:
            runs[key] = measure(row["arguments"], options.out)
        summary = runs[key]
        failed = f"| {row['name']} | {row['expected']:.3f} | - | failed, see above |"
        lines.append(failed if summary is None else verdict(row, at(summary, row["key"])))
    print("\n".join(lines))
    return int(any("off by" in line or "failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
