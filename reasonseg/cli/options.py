"""Shared parts of commands: their declaration, the options of a model, and argument types."""

from __future__ import annotations

import argparse
import base64
import binascii
import glob
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from reasonseg.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """An argument parser that prints a mistake in one line and exits with code 2.

    `asked` holds the words after the command, for commands that accept dotted paths to modules.
    """

    asked: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        print(f"reasonseg: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


@dataclass(frozen=True)
class Command:
    """One command. A file of this folder lists its commands as `COMMANDS`; that registers them.

    `arguments(parser)` adds the options; it is called only for the command that runs.
    `run(options)` does the work and returns the exit code (None: 0); a command with subcommands
    sets `run` for each of them instead.
    """

    name: str
    help: str
    description: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None] | None = None
    epilog: str = ""


def verbs_of(parser: Parser, title: str = "verbs", metavar: str = "VERB") -> Any:
    """The object that adds subcommands to a command, with `add_parser`."""
    return parser.add_subparsers(title=title, required=True, metavar=metavar, parser_class=Parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds one option for each keyword of `Segmenter.from_pretrained`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="M",
        help="model folder, weight file, hub id, a packaged model (photo, tiny, tiny-seggpt), or "
        "speaker:MODEL+DRAWER, endpoint:URL#NAME+DRAWER, agent:MODEL+DRAWER, or a YAML file of one "
        "(default: photo where its packages are installed, else tiny)",
    )
    group.add_argument(
        "--calls",
        type=positive,
        metavar="N",
        help="calls of an agent for one question, at most (default: 6)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is a GPU)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the weights (default: float32 on CPU, bfloat16 on CUDA)",
    )
    group.add_argument(
        "--quantization",
        choices=["int8", "nf4"],
        help="quantization of the language model's layers (default: none)",
    )
    add_checkpoint_options(group)
    group.add_argument(
        "--compile",
        action="store_true",
        help="faster generation after about half a minute of compiling (default: off)",
    )


def add_checkpoint_options(parser: Any) -> None:
    """Adds the options that say how released weights are read, to a parser or a group."""
    parser.add_argument(
        "--clip",
        metavar="DIR",
        help="vision tower, for a released checkpoint without one (default: the one beside the "
        "weights)",
    )
    parser.add_argument(
        "--sam",
        metavar="FILE",
        help="another mask decoder, or SegGPT's refiner: .pth, folder or hub id "
        "(default: the model's)",
    )
    parser.add_argument(
        "--template",
        help="conversation template: plain, llava_v1, vicuna_v1, llava_llama_2 "
        "(default: the model's)",
    )
    parser.add_argument(
        "--read",
        choices=["predicting", "at"],
        help="the hidden state that prompts the decoder: the one that predicts <SEG>, or the one "
        "at <SEG> (default: the model's)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PREFIX",
        help="prefix of weights that may be missing or unused; may be repeated (default: none)",
    )
    parser.add_argument(
        "--revision", help="commit, branch or tag of a hub model (default: the newest)"
    )


def add_bank_options(parser: argparse.ArgumentParser, labels: str = "") -> None:
    """Adds the options of a folder to select references from; `labels` says what labels do."""
    parser.add_argument(
        "--bank",
        metavar="DIR",
        default="",
        help=f"a folder of annotated images to select references from{labels} (default: none)",
    )
    parser.add_argument(
        "--shots",
        type=positive,
        default=1,
        metavar="K",
        help="references to select from the bank (default: %(default)s)",
    )
    parser.add_argument(
        "--by",
        choices=["pixel", "global", "thing"],
        default="pixel",
        help="how the bank compares images (default: %(default)s)",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a config file and settings to change."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/tiny.yaml")
    add_overrides(parser, "workers=4")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds settings to change."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"settings to change, such as {example} (default: none)",
    )


def load_model(options: argparse.Namespace, notice: bool = True) -> Any:
    """The segmenter that the options name.

    With `notice`, the notice of the model, if it has one, is printed to stderr. Raises `InputError`
    where the model cannot be loaded or the device does not exist.
    """
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg import Segmenter

    try:
        segmenter = Segmenter.from_pretrained(**model_keywords(options))
    except RuntimeError as error:  # torch raises it for an unknown or missing device
        if options.device is None:
            raise
        raise InputError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    if (calls := getattr(options, "calls", None)) is not None:
        if not hasattr(segmenter.settings, "calls"):
            raise InputError("--calls is for agents (--model agent:MODEL+DRAWER); leave it out")
        segmenter.settings = replace(segmenter.settings, calls=calls)
    if notice and segmenter.settings.notice:
        print(segmenter.settings.notice, file=sys.stderr)
    return segmenter


def refuse_fall_back(options: argparse.Namespace) -> None:
    """Raises `InputError` where no model is named and the default cannot be had: a score or a
    training must not silently be of another model.
    """
    from reasonseg.checkpoints.folder import default_model

    if options.model is None and (remark := default_model()[1]):
        raise InputError(f"{remark}; or name --model tiny")


def model_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Segmenter.from_pretrained` from the options, `source` included."""
    names = ("device", "dtype", "quantization", "clip", "sam", "template", "read", "revision")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"compile": True} if options.compile else {}
    return {"source": options.model, "allow": tuple(options.allow), **given}


def numbers(text: str, counts: tuple[int, ...], what: str) -> tuple[float, ...]:
    """Numbers from text, separated by commas; their count must be one of `counts`.

    Raises `ArgumentTypeError` with the description `what` otherwise.
    """
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return values


def box(text: str) -> tuple[float, ...]:
    """The argument type of a box `x0,y0,x1,y1`, in pixels or as fractions of the image."""
    return numbers(text, (4,), "a box x0,y0,x1,y1")


def point(text: str) -> tuple[float, float, int]:
    """The argument type of a point `x,y` or `x,y,0`; the third number defaults to 1."""
    x, y, *on = numbers(text, (2, 3), "a point x,y or x,y,0")
    if on and on[0] not in (0, 1):
        raise argparse.ArgumentTypeError(f"{text!r}: the third number is 1 (on it) or 0 (off it)")
    return x, y, int(on[0]) if on else 1


def in_pixels(values: Sequence[float], size: tuple[int, int], what: str) -> list[float]:
    """The numbers x, y, x, y ... in pixels of an image of `size` (height, width).

    Where all lie in 0..1 and one is no whole number, they are fractions of the image; a note on
    stderr says so.
    """
    if not all(0 <= v <= 1 for v in values) or all(v == int(v) for v in values):
        return list(values)
    found = [v * size[1 - k % 2] for k, v in enumerate(values)]
    listed = ",".join(f"{v:g}" for v in values)
    print(f"note: {what} {listed} is read as fractions of the image", file=sys.stderr)
    return found


def share(text: str) -> float:
    """The argument type of a number 0..1."""
    return _number(text, 0, 1, "a number from 0 to 1")


def temperature(text: str) -> float:
    """The argument type of a sampling temperature, 0 or above."""
    return _number(text, 0, 1000, "a temperature, a number from 0 on")


def seconds(text: str) -> float:
    """The argument type of a time or an amount above 0."""
    return _number(text, 1e-9, 1e9, "a number above 0")


def seed(text: str) -> int:
    """The argument type of a seed, a whole number of 63 bits."""
    if not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def port(text: str) -> int:
    """The argument type of a port, 1 to 65535."""
    if not text.isdigit() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def folder_to_write(text: str) -> str:
    """The argument type of a folder to write to, which is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return text


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def images_and_text(words: Sequence[str]) -> tuple[list[str], str]:
    """The images and the question of a command line: `IMAGE [IMAGE ...] [TEXT]`.

    The first word is an image. So is every other that is an existing file, matches files
    (`*.jpg`), is `-` (standard input) or a `data:` URL. Raises `InputError` where two words are no
    images, or a pattern matches nothing.
    """
    images, texts = [], []
    for k, word in enumerate(words):
        if word == "-" or word.startswith("data:") or _is_file(word):
            images.append(word)
        elif found := sorted(glob.glob(word)) if glob.has_magic(word) else []:
            images += [file for file in found if _is_file(file)]
        elif k == 0:
            images.append(word)
        else:
            texts.append(word)
    if len(texts) > 1:
        raise InputError(
            f"{' '.join(map(repr, texts[:3]))} are no images; put the question in quotes"
        )
    return images, texts[0] if texts else ""


def _is_file(word: str) -> bool:
    try:
        return os.path.isfile(word)
    except ValueError:
        return False


def image_source(word: str) -> tuple[Any, str]:
    """(path or bytes, name) of an image on the command line: a path, `-`, or a `data:` URL.

    Raises `InputError` where a URL holds no base64.
    """
    if word == "-":
        return sys.stdin.buffer.read(), "standard input"
    if not word.startswith("data:"):
        return word, word
    try:
        data = base64.b64decode("".join(word.partition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the data: URL holds no base64 of an image file") from None
    return data, "the data: URL"


def positive(text: str) -> int:
    """The argument type of a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
