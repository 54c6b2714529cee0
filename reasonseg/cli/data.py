"""`data`: looks at a data set before it is trusted."""

from __future__ import annotations

import argparse
import sys

from reasonseg.cli.options import Command, Parser, verbs_of
from reasonseg.datasets.base import named_sets


def _arguments(parser: Parser) -> None:
    check = verbs_of(parser).add_parser(
        "check", help="read every sample, name what is broken, draw a few"
    )
    known = named_sets(parser.asked[1:2])
    check.add_argument("name", choices=known, metavar="NAME", help=", ".join(known))
    check.add_argument("--root", required=True, metavar="DIR")
    check.add_argument("--split", help="(default: every split there is)")
    check.add_argument(
        "--out",
        metavar="DIR",
        default="out/data",
        help="where samples are drawn (default: %(default)s)",
    )
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from reasonseg.evaluation.dataset_report import inspect

    found = named_sets(options.name)[options.name]
    splits = [options.split] if options.split and len(found.name.splits) > 1 else found.name.splits
    configs = {
        split: found.build(root=options.root, split=split, sentences="all") for split in splits
    }
    report = inspect(configs, options.out, progress=sys.stderr.isatty())
    for line in report.lines():
        print(line)
    print(f"pictures in {options.out}")
    return 1 if report.problems else 0


COMMANDS = (
    Command("data", "look at a data set", "Says what a data set holds and lacks.", _arguments),
)
