"""The command `reasonseg`. Heavy libraries load only in the command that needs them."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence

from reasonseg import __version__
from reasonseg.cli import ask, bank, evaluate, model, scenes, serve, train
from reasonseg.cli.options import Parser
from reasonseg.errors import InputError


def console() -> None:
    """The process of a command. `ask` is to be quick, and would spend a third of its seconds tidying up among modules."""
    gc.set_threshold(50_000, 20, 20)
    code = main()
    if sys.argv[1:2] != ["ask"]:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. User mistakes are one line on stderr and exit code 2."""
    options = read_arguments(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"reasonseg: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reasonseg: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line says."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        options.overrides += rest  # key=value after an option, which argparse does not take for the same list
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(prog="reasonseg", description="Words, examples, or both into image masks.")
    parser.add_argument("--version", action="version", version=f"reasonseg {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    groups = [
        ask.COMMANDS,
        train.COMMANDS,
        model.COMMANDS,
        evaluate.COMMANDS,
        scenes.COMMANDS,
        bank.COMMANDS,
        serve.COMMANDS,
    ]
    for add in (add for group in groups for add in group):
        add(commands)
    return parser


if __name__ == "__main__":
    console()
