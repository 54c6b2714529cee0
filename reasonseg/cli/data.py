"""The command `data`: checks a data set before it is used."""

from __future__ import annotations

import argparse
import sys

from reasonseg.cli.options import Command, Parser, add_overrides, verbs_of
from reasonseg.datasets.base import named_sets


def _arguments(parser: Parser) -> None:
    check = verbs_of(parser).add_parser(
        "check", help="read every sample, list the broken ones, draw some"
    )
    known = named_sets(parser.asked[1:2])
    check.add_argument("name", choices=known, metavar="NAME", help=", ".join(known))
    check.add_argument(
        "--root", required=True, metavar="DIR", help="the folder of the data set (required)"
    )
    check.add_argument("--split", help="the split to check (default: all splits)")
    check.add_argument(
        "--out",
        metavar="DIR",
        default="out/data",
        help="the folder where some samples are drawn (default: %(default)s)",
    )
    add_overrides(check, "data.void=255")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from reasonseg.evaluation.dataset_report import inspect

    found = named_sets(options.name)[options.name]
    splits = [options.split] if options.split and len(found.name.splits) > 1 else found.name.splits
    given = {"root": options.root, "sentences": "all"}
    configs = {split: found.build(options.overrides, split=split, **given) for split in splits}
    report = inspect(configs, options.out, progress=sys.stderr.isatty())
    for line in report.lines():
        print(line)
    print(f"images in {options.out}")
    return 0 if report.right else 1


COMMANDS = (Command("data", "check a data set", "Checks the files of a data set.", _arguments),)
