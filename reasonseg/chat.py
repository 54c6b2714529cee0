"""A conversation in the terminal: each line is a question about the image at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reasonseg.errors import InputError
from reasonseg.images import read_image
from reasonseg.vocabulary import Query

HELP = """a line is a question; besides:
  /image FILE   talk about another image
  /undo         forget the last turn
  /help         this
  /quit         leave (so does an empty end of input)"""


def converse(load: Callable, image: str | None, out: str) -> None:
    """Reads questions until the end of input; each turn is written to `out`/turn-N."""
    picture = None if image is None else read_image(image)
    segmenter = load()
    turns: list[tuple[str, str]] = []
    print(HELP if image is None else f"talking about {image}; /help lists commands")
    count = 0
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            elif command == "/help":
                print(HELP)
            elif command == "/undo":
                print("forgot: " + turns.pop()[0] if turns else "there is no turn to forget")
            elif command == "/image":
                picture, turns = read_image(rest.strip()), []
                print(f"talking about {rest.strip()}")
            elif line.startswith("/"):
                raise InputError(f"no command {command}; /help lists them")
            elif line and picture is None:
                raise InputError("there is no image yet; /image FILE")
            elif line:
                answer = segmenter(Query(picture, line))
                turns.append((line, answer.text))
                count += 1
                answer.save(Path(out) / f"turn-{count}")
                print(f"{answer.text}\n  {answer.status}: {out}/turn-{count}/overlay.png")
        except InputError as error:
            print(f"  {error}")
