"""Writes the scores of `eval photos` into the README, the model card and the page of results.

reasonseg eval photos --root photos --model photo --limit 150 --out out/photos
python -m scripts.photo_table out/photos/summary.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "reasonseg/assets/photo/README.md", "docs/explanation/results.md")
START, END = "<!-- table: reasonseg eval photos -->", "<!-- end of photos -->"
MEANS = {
    "name": "plain names",
    "refer": "place, size, colour, neighbour",
    "reason": "by use or by what is true of it",
    "multi": "several things",
    "box": "a box",
    "click": "a click",
    "example": "one example, without words",
}


def table(summary: dict) -> str:
    """The scores as Markdown."""
    lines = ["| level | gIoU | 95 % interval | questions |", "|---|---|---|---|"]
    levels = summary["levels"]
    for level, meaning in MEANS.items():
        if level in levels:
            row = levels[level]
            low, high = row["ci95"]
            lines.append(f"| {meaning} | {row['giou']:.3f} | {low:.3f} - {high:.3f} | {row['n']} |")
    absent = levels["absent"]
    lines.append(
        f"| things that are not there | N-acc {summary['n_acc']:.3f}, "
        f"T-acc {summary['t_acc']:.3f} | "
        f"{absent['ci95'][0]:.3f} - {absent['ci95'][1]:.3f} | {absent['n']} |"
    )
    lines += ["", f"The box itself, as a mask, scores {levels['box']['box_itself']:.3f}."]
    return "\n".join(lines)


def main() -> None:
    """Fills the files, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("summary", type=Path)
    text = table(json.loads(parser.parse_args().summary.read_text(encoding="utf-8")))
    for name in FILES:
        old = (ROOT / name).read_text(encoding="utf-8")
        block = f"{START}\n{text}\n{END}"
        new = re.sub(f"{START}.*?{END}", lambda _, b=block: b, old, flags=re.S)
        (ROOT / name).write_text(new, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
