"""The command `reasonseg`. Heavy libraries load only in the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reasonseg import __version__
from reasonseg.commands import ask, evaluate, model, scenes, train
from reasonseg.commands.shared import Parser
from reasonseg.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. User mistakes are one line on stderr and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
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


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(prog="reasonseg", description="Words, examples, or both into image masks.")
    parser.add_argument("--version", action="version", version=f"reasonseg {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for add in (
        ask.add_ask, ask.add_chat, train.add_train, model.add_import, evaluate.add_eval, scenes.add_scenes, model.add_show,
        model.add_doctor,
    ):  # fmt: skip
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
