"""What commands share: how one is declared, the flags of a model, and words that are numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from reasonseg.errors import InputError


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line. `asked` holds the words behind the command, for those that
    name a module of their own.
    """

    asked: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        print(f"reasonseg: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


@dataclass(frozen=True)
class Command:
    """One command. A file of this folder lists its commands as `COMMANDS`; nothing else has to know
    of them.

    `arguments(parser)` adds the options and is called only for the command that runs.
    `run(options)` does the work and returns the exit code (None: 0); a command with verbs sets
    `run` for each of them instead.
    """

    name: str
    help: str
    description: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None] | None = None
    epilog: str = ""


def verbs_of(parser: Parser, title: str = "verbs", metavar: str = "VERB") -> Any:
    """Where the verbs of a command are added, with `add_parser`."""
    return parser.add_subparsers(title=title, required=True, metavar=metavar, parser_class=Parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Every keyword of `Segmenter.from_pretrained`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="M", help="folder or hub id, tiny or tiny-seggpt (default: tiny)"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    group.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="precision of the weights"
    )
    group.add_argument(
        "--quantization", choices=["int8", "nf4"], help="of the language model's layers"
    )
    group.add_argument(
        "--clip", metavar="DIR", help="vision tower of a released checkpoint that comes without one"
    )
    group.add_argument(
        "--sam", metavar="DIR", help="mask decoder to use instead, or SegGPT's refiner"
    )
    group.add_argument(
        "--template", help="conversation strings: plain, llava_v1, vicuna_v1, llava_llama_2"
    )
    group.add_argument(
        "--read", choices=["predicting", "at"], help="which state of <SEG> prompts the decoder"
    )
    group.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PREFIX",
        help="weights that may be missing or left over",
    )
    group.add_argument("--revision", help="commit, branch or tag of a hub model")
    group.add_argument(
        "--compile",
        action="store_true",
        help="faster generation after about half a minute of compiling",
    )


def load_model(options: argparse.Namespace, notice: bool = True) -> Any:
    """The segmenter the options name; its notice, if it has one, goes to stderr once."""
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg import Segmenter

    try:
        segmenter = Segmenter.from_pretrained(**model_keywords(options))
    except RuntimeError as error:  # torch's word for a device it does not know or have
        if options.device is None:
            raise
        raise InputError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    if notice and segmenter.settings.notice:
        print(segmenter.settings.notice, file=sys.stderr)
    return segmenter


def model_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of `Segmenter.from_pretrained`'s keywords."""
    names = ("device", "dtype", "quantization", "clip", "sam", "template", "read", "revision")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"compile": True} if options.compile else {}
    return {"source": options.model, "allow": tuple(options.allow), **given}


def numbers(text: str, counts: tuple[int, ...], what: str) -> tuple[float, ...]:
    """Numbers with commas between, as many as one of `counts`."""
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return values


def box(text: str) -> tuple[float, ...]:
    """`x0,y0,x1,y1`."""
    return numbers(text, (4,), "a box x0,y0,x1,y1")


def point(text: str) -> tuple[float, float, int]:
    """`x,y` or `x,y,0`."""
    x, y, *on = numbers(text, (2, 3), "a point x,y or x,y,0")
    return x, y, int(on[0]) if on else 1


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
