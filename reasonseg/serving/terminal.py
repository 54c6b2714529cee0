"""A conversation in the terminal: each line is a question about the picture at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from reasonseg.errors import InputError
from reasonseg.serving.session import Session
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image
from reasonseg.structures.query import Reference

HELP = """a line is a question; besides:
  /image FILE             talk about another picture
  /ref IMAGE MASK [LABEL] show an example of what the next questions are about
  /refs                   the examples shown so far; /refs none forgets them
  /click X,Y [0] [MASK]   correct a mask of the last answer (0: what is there does not belong to it)
  /box X0,Y0,X1,Y1 [MASK] draw a mask of the last answer again, inside a box
  /save DIR               write the whole conversation
  /undo                   forget the last turn
  /help                   this
  /quit                   leave (so does the end of input)"""


class Terminal:
    """Lines to a session. Turns are written to `out`/turn-N as they come."""

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
        """One line of input. Raises `InputError` for what cannot be done."""
        command, *words = line.split()
        if not command.startswith("/"):
            self.told(self.session.ask(line, on_text=self.on_text))
        elif command not in self.commands:
            raise InputError(f"no command {command}; /help lists them")
        else:
            self.commands[command](words)

    def on_text(self, text: str) -> None:
        """Shows the answer as it is spoken, where somebody watches."""
        if sys.stdout.isatty():
            print(f"\r{text}", end="", flush=True)

    def told(self, answer: Answer) -> None:
        """Shows an answer, whole, and where it was written."""
        folder = self.out / f"turn-{len(self.session.turns)}"
        answer.save(folder)
        clear = "\r" if sys.stdout.isatty() else ""
        print(f"{clear}{answer.text}\n  {answer.status}: {folder}/overlay.png")

    def image(self, words: list[str]) -> None:
        """`/image FILE`"""
        self.session.look(read_image(" ".join(words)))
        print(f"talking about {' '.join(words)}")

    def ref(self, words: list[str]) -> None:
        """`/ref IMAGE MASK [LABEL]`"""
        if len(words) < 2:
            raise InputError("/ref IMAGE MASK [LABEL]")
        reference = Reference.open(words[0], words[1], " ".join(words[2:]) or None)
        reference.name = words[0]
        self.session.show(reference)
        print(f"{len(self.session.references)} examples")

    def refs(self, words: list[str]) -> None:
        """`/refs [none]`"""
        if words == ["none"]:
            self.session.references.clear()
        for reference in self.session.references:
            print(f"  {reference.name}: {reference.label or 'no label'}")
        print(f"{len(self.session.references)} examples")

    def click(self, words: list[str]) -> None:
        """`/click X,Y [0] [MASK]`"""
        x, y = _numbers(words[:1], 2, "/click X,Y [0] [MASK]")
        on = _whole(words[1], "/click X,Y [0] [MASK]") if len(words) > 1 else 1
        mask = _whole(words[2], "/click X,Y [0] [MASK]") if len(words) > 2 else 0
        self.told(self.session.correct(points=[(x, y, on)], mask=mask))

    def box(self, words: list[str]) -> None:
        """`/box X0,Y0,X1,Y1 [MASK]`"""
        x0, y0, x1, y1 = _numbers(words[:1], 4, "/box X0,Y0,X1,Y1 [MASK]")
        mask = _whole(words[1], "/box X0,Y0,X1,Y1 [MASK]") if len(words) > 1 else 0
        self.told(self.session.correct(boxes=[(x0, y0, x1, y1)], mask=mask))

    def undo(self, words: list[str]) -> None:
        """`/undo`"""
        turn = self.session.undo()
        print(
            "there is no turn to forget"
            if turn is None
            else f"forgot: {turn.query.text or 'a correction'}"
        )


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
    """Reads questions until the end of input; each turn is written to `out`/turn-N."""
    picture = None if image is None else read_image(image)
    terminal = Terminal(Session(load(), picture), out)
    print(HELP if image is None else f"talking about {image}; /help lists commands")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        try:
            if line:
                terminal.line(line)
        except InputError as error:
            print(f"  {error}")
