"""A conversation in the terminal: each line is a question about the current image."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from reasonseg.errors import InputError
from reasonseg.serving.session import Session
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.query import Reference

HELP = """a line is a question; other commands:
  /image FILE             ask about another image
  /ref IMAGE MASK [LABEL] add a reference image for the next questions
  /refs                   list the reference images; /refs none removes them
  /click X,Y [0] [MASK]   correct a mask of the last answer (0: the point is not on the object)
  /box X0,Y0,X1,Y1 [MASK] correct a mask of the last answer by a box
  /save DIR               write the whole conversation
  /undo                   remove the last turn
  /help                   print this help
  /quit, quit or exit     quit (as at the end of input)"""
LEAVE = ("/quit", "/exit", "quit", "exit", ":q")


class Terminal:
    """Runs lines of input on a session; each turn is written to `out`/turn-N."""

    def __init__(self, session: Session, out: str):
        self.session, self.out = session, Path(out)
        self.commands = {
            "/image": self.image,
            "/ref": self.ref,
            "/refs": self.refs,
            "/click": self.click,
            "/box": self.box,
            "/save": lambda words: print(f"wrote {self.session.save(' '.join(words) or self.out)}"),
            "/undo": self.undo,
            "/help": lambda words: print(HELP),
        }

    def line(self, line: str) -> None:
        """Runs one line of input. Raises `InputError` where it is not valid."""
        command, *words = _words(line)
        if not command.startswith("/"):
            self.told(self.session.ask(line, on_text=self.on_text))
        elif command not in self.commands:
            raise InputError(f"no command {command}; /help lists them")
        else:
            self.commands[command](words)

    def on_text(self, text: str) -> None:
        """Prints the text so far, if the output is a terminal."""
        if sys.stdout.isatty():
            print(f"\r{text}", end="", flush=True)

    def told(self, answer: Answer) -> None:
        """Writes an answer to its folder, and prints its text and the folder."""
        folder = self.out / f"turn-{len(self.session.turns)}"
        answer.save(folder)
        clear = "\r" if sys.stdout.isatty() else ""
        print(f"{clear}{answer.text}\n  {answer.status}: {folder}/overlay.png")

    def image(self, words: list[str]) -> None:
        """`/image FILE`: changes the image."""
        self.session.look(read_image(" ".join(words)))
        print(f"image: {' '.join(words)}")

    def ref(self, words: list[str]) -> None:
        """`/ref IMAGE MASK [LABEL]`: adds a reference image."""
        if len(words) < 2:
            raise InputError("/ref IMAGE MASK [LABEL]")
        reference = Reference.open(words[0], words[1], " ".join(words[2:]) or None)
        reference.name = words[0]
        self.session.show(reference)
        print(f"{len(self.session.references)} reference images")

    def refs(self, words: list[str]) -> None:
        """`/refs [none]`: lists or removes the reference images."""
        if words == ["none"]:
            self.session.references.clear()
        for reference in self.session.references:
            print(f"  {reference.name}: {reference.label or 'no label'}")
        print(f"{len(self.session.references)} reference images")

    def click(self, words: list[str]) -> None:
        """`/click X,Y [0] [MASK]`: corrects a mask by a point."""
        x, y = _numbers(words[:1], 2, "/click X,Y [0] [MASK]")
        on = _whole(words[1], "/click X,Y [0] [MASK]") if len(words) > 1 else 1
        mask = _whole(words[2], "/click X,Y [0] [MASK]") if len(words) > 2 else 0
        self.told(self.session.correct(points=[(x, y, on)], mask=mask))

    def box(self, words: list[str]) -> None:
        """`/box X0,Y0,X1,Y1 [MASK]`: corrects a mask by a box."""
        x0, y0, x1, y1 = _numbers(words[:1], 4, "/box X0,Y0,X1,Y1 [MASK]")
        mask = _whole(words[1], "/box X0,Y0,X1,Y1 [MASK]") if len(words) > 1 else 0
        self.told(self.session.correct(boxes=[(x0, y0, x1, y1)], mask=mask))

    def undo(self, words: list[str]) -> None:
        """`/undo`: removes the last turn."""
        turn = self.session.undo()
        print(
            "there is no turn to forget"
            if turn is None
            else f"forgot: {turn.query.text or 'a correction'}"
        )


def _words(line: str) -> list[str]:
    """The words of a line; those of a command may be quoted."""
    if not line.startswith("/"):
        return line.split()
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is not closed
        return line.split()


def _numbers(words: list[str], count: int, usage: str) -> list[float]:
    try:
        values = [float(v) for v in words[0].split(",")]
    except (IndexError, ValueError):
        values = []
    if len(values) != count:
        raise InputError(usage)
    return values


def _whole(word: str, usage: str) -> int:
    if not word.isdigit():
        raise InputError(usage)
    return int(word)


def converse(load: Callable, image: str | None, out: str) -> None:
    """Runs a conversation until the end of input; each turn is written to `out`/turn-N.

    `load` returns the segmenter; `image` is the path of the first image.
    """
    picture = None if image is None else read_image(image)
    terminal = Terminal(Session(load(), picture), out)
    print(HELP if image is None else f"image: {image}; /help lists commands")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line.lower() in LEAVE:
            return
        try:
            if line:
                terminal.line(line)
        except InputError as error:
            print(f"  {error}")
