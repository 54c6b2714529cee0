"""The command `reasonseg`. Heavy libraries are imported only in the command that needs them."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Sequence

from reasonseg import __version__
from reasonseg.cli.options import Command, Parser
from reasonseg.config.kinds import files, kind_module, kinds
from reasonseg.errors import InputError

NUMBERS = ("--box", "--point")  # options whose value is a list of numbers


def console() -> None:
    """The entry point of the process.

    `ask` must be fast. Garbage collection among the imported modules would take a third of its run
    time, so it is rare here; and `ask` exits without the interpreter's cleanup.
    """
    gc.set_threshold(50_000, 20, 20)
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # names of files and text on the screen in UTF-8, whatever the locale is
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "reasonseg", *sys.argv[1:]])
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = main()
    if sys.argv[1:2] != ["ask"]:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    A mistake (`InputError`) or a failure of the system, such as a full disk, is one line on stderr
    and exit code 2. `arguments` None means `sys.argv`.
    """
    try:
        options = read_arguments(arguments)
        return options.run(options) or 0
    except InputError as error:
        print(f"reasonseg: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # no room, no right to write, a lost network drive
        if isinstance(error, BrokenPipeError):
            return 141
        where = f"{error.filename}: " if error.filename else ""
        print(f"reasonseg: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reasonseg: stopped", file=sys.stderr)
        return 130


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line. Exits with code 2 where it is not valid."""
    words = joined(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(words[0] if words else "", tuple(words[1:]))
    options, rest = parser.parse_known_args(words)
    if (
        rest
        and hasattr(options, "overrides")
        and all("=" in word and not word.startswith("-") for word in rest)
    ):
        options.overrides += (
            rest  # key=value after an option, which argparse does not add to the same list
        )
    elif rest and hasattr(options, "words") and not any(w.startswith("-") for w in rest):
        options.words += rest  # what follows an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def joined(words: Sequence[str]) -> list[str]:
    """The words, with a list of numbers that begins with a minus joined to its option.

    argparse would take `-5,10,20,30` for an option.
    """
    found: list[str] = []
    for word in words:
        if found and found[-1] in NUMBERS and word[:1] == "-" and word[1:2].isdigit():
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def commands(word: str = "") -> list[Command]:
    """All commands: those of this folder, and those of other packages.

    Other packages add commands with entry points of the group `reasonseg.cli`. They are searched
    only where `word`, the command to run, is not in this folder.
    """
    own = [command for name in files("cli") for command in kind_module("cli", name).COMMANDS]
    if word in {command.name for command in own}:
        return own
    added = [name for name in kinds("cli") if name not in files("cli")]
    return own + [command for name in added for command in kind_module("cli", name).COMMANDS]


def build_parser(word: str | None = None, asked: tuple[str, ...] = ()) -> Parser:
    """The parser of all commands.

    Options are added only to the command `word`; None adds them to all. `asked` are the words after
    the command.
    """
    parser = Parser(prog="reasonseg", description="Words, examples, or both into image masks.")
    parser.add_argument("--version", action="version", version=f"reasonseg {__version__}")
    added = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser
    )
    for command in commands(word or ""):
        one = added.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            epilog=command.epilog or None,
        )
        if word in (None, command.name):
            one.asked = asked
            command.arguments(one)
            if command.run is not None:
                one.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    console()
