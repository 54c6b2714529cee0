"""Writes the table of an `eval scenes` summary into the README and the model card.

score_table.py SUMMARY
"""

import argparse
import json
import re
from pathlib import Path

from reasonseg.nn.pretrained import EMBEDDED

ROOT = Path(__file__).parents[1]
TARGETS = {
    "name": 0.85,
    "attribute": 0.80,
    "relation": 0.70,
    "compare": 0.70,
    "function": 0.75,
    "multi": 0.70,
}


def table(summary: dict) -> str:
    """Markdown: a row per level with its target, then the scores for comparison."""
    lines = ["| level | gIoU | 95 % interval | aimed for | questions |", "|---|---|---|---|---|"]
    for level, row in summary["levels"].items():
        low, high = row["ci95"]
        if level == "absent":
            score, goal = f"N-acc {row['n_acc']:.3f}, T-acc {row['t_acc']:.3f}", "0.90, 0.95"
        else:
            score, goal = f"{row['giou']:.3f}", f"{TARGETS[level]:.2f}" if level in TARGETS else "-"
        lines.append(f"| {level} | {score} | {low:.3f} - {high:.3f} | {goal} | {row['n']} |")
    overall, others, novel = summary["overall"], summary["baselines"], summary["levels"]["novel"]
    known = overall["t_acc"]
    low, high = overall["ci95"]
    strict = summary["levels"]["multi"]["strict_giou"]
    lines.append(
        f"| overall (without novel) | {overall['giou']:.3f} | {low:.3f} - {high:.3f} | - | "
        f"{overall['n']} |"
    )
    return "\n".join(lines) + (
        f"\n\nThe mask of a random object scores {others['random_object']['giou']:.3f}, "
        f"this model shown another image {others['text_only']['giou']:.3f}, "
        f"its decoder with each object's box as prompt {others['true_object']['giou']:.3f}. "
        "Masks are compared one by one, in their order. If extra masks count as errors, `multi` "
        f"scores {strict:.3f}. "
        "`novel` is the function level in wordings that training never used; "
        f"{1 - novel['t_acc']:.0%} of its questions are refused. Without `novel`, T-acc is "
        f"{known:.3f}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("summary", type=Path)
    text = table(json.loads(parser.parse_args().summary.read_text(encoding="utf-8")))
    for file in (ROOT / "README.md", EMBEDDED / "README.md"):
        old = file.read_text(encoding="utf-8")
        block = f"<!-- table: reasonseg eval scenes -->\n{text}\n<!-- end of table -->"
        new = re.sub(
            r"<!-- table: reasonseg eval scenes -->(.*?<!-- end of table -->)?",
            lambda _, b=block: b,
            old,
            flags=re.S,
        )
        file.write_text(new, encoding="utf-8")
    print(text)
