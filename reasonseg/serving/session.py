"""A conversation about pictures: follow-up questions, corrections by a click or a box, references
shown on the way.

What encoders make of a picture is kept by the model (`segmenter.cache`), so that only a picture's
first question pays for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write
from reasonseg.structures.query import Box, Point, Query, Reference

MAX_TURNS, MAX_BYTES = 100, 512 * 2**20  # kept of a conversation; earlier turns go
MAX_REFERENCES = 16


@dataclass
class Turn:
    """What was asked of which picture, and the answer; `clicks` are the corrections of each mask
    so far.
    """

    query: Query
    answer: Answer
    clicks: dict[int, list[Point]] = field(default_factory=dict)
    corrected: bool = False  # a correction of the turn before, not a question of its own


class Session:
    """Turns about one picture after another. `memory`: how many earlier turns the model reads
    (None: its own setting).
    """

    def __init__(self, segmenter, image: np.ndarray | None = None, memory: int | None = None):
        self.segmenter = segmenter
        self.memory = segmenter.settings.memory if memory is None else memory
        self.image: np.ndarray | None = None
        self.turns: list[Turn] = []
        self.references: list[Reference] = []
        if image is not None:
            self.look(image)

    def look(self, image: np.ndarray) -> None:
        """Talks about another picture from now on: earlier turns are not read with it.
        References stay.
        """
        self.image = Query(image, text="?").image

    def copy(self) -> Session:
        """The same conversation, to try what it would ask; `take` makes it so."""
        trial = Session(self.segmenter, memory=self.memory)
        trial.image, trial.turns, trial.references = (
            self.image,
            list(self.turns),
            list(self.references),
        )
        return trial

    def take(self, trial: Session) -> None:
        """The picture and the examples of a trial."""
        self.image, self.references = trial.image, trial.references

    def show(self, reference: Reference) -> None:
        """Adds an example to every question from now on."""
        if len(self.references) >= MAX_REFERENCES:
            raise InputError(f"{MAX_REFERENCES} examples are shown already; forget some first")
        self.references.append(reference)

    @property
    def nbytes(self) -> int:
        """Bytes of the pictures and masks it holds."""
        references = [*self.references, *(r for t in self.turns for r in t.query.references)]
        arrays = [
            self.image,
            *(t.query.image for t in self.turns),
            *(t.answer.masks for t in self.turns),
        ]
        arrays += [a for r in references for a in (r.image, r.mask)]
        return sum({id(a): a.nbytes for a in arrays if a is not None}.values())

    @property
    def history(self) -> tuple[tuple[str, str], ...]:
        """(question, answer text) of the turns about this picture that the next question is read
        with.
        """
        if not self.memory:
            return ()
        about = [
            t
            for t in self.turns
            if t.query.image is self.image and t.query.text.strip() and not t.corrected
        ]
        return tuple((t.query.text, t.answer.text) for t in about[-self.memory :])

    def query(
        self, text: str = "", points: Sequence[Point] = (), boxes: Sequence[Box] = ()
    ) -> Query:
        """The next question as the model gets it. Raises `InputError` where there is no picture
        or nothing is asked.
        """
        if self.image is None:
            raise InputError("there is no picture yet; give one first")
        return Query(
            self.image,
            text,
            tuple(self.references),
            points,
            boxes,
            history=self.history if text.strip() else (),
        )

    def ask(
        self,
        text: str = "",
        *,
        points: Sequence[Point] = (),
        boxes: Sequence[Box] = (),
        on_text: Callable[[str], None] | None = None,
        **options,
    ) -> Answer:
        """An answer to the next question; `on_text` gets the text as it grows, before the masks.
        Options are those of `batch`.
        """
        query = self.query(text, points, boxes)
        given = {} if on_text is None else {"on_text": lambda _, so_far: on_text(so_far)}
        answer = self.segmenter.batch([query], **given, **options)[0]
        return self.keep(query, answer)

    def keep(self, query: Query, answer: Answer) -> Answer:
        """Adds a turn that was answered elsewhere."""
        self.turns.append(Turn(query, answer))
        while len(self.turns) > MAX_TURNS or (len(self.turns) > 1 and self.nbytes > MAX_BYTES):
            del self.turns[0]
        return answer

    def correction(
        self, points: Sequence[Point] = (), boxes: Sequence[Box] = (), mask: int = 0
    ) -> tuple[Query, list[Point]]:
        """The question that corrects a mask of the last answer, and all clicks on that mask so far.

        The words come along where the answer has this mask alone. Raises `InputError` where there
        is no such mask.
        """
        if not self.turns or self.turns[-1].query.image is not self.image:
            raise InputError("there is no mask to correct yet; ask first")
        last = self.turns[-1]
        if not 0 <= mask < len(last.answer.masks):
            raise InputError(
                f"the last answer has {len(last.answer.masks)} masks; there is no mask {mask}"
            )
        if not len(points) and not len(boxes):
            raise InputError("a correction needs a point or a box")
        clicks = [*last.clicks.get(mask, []), *points]
        alone = len(last.answer.masks) == 1
        query = replace(
            last.query,
            text=last.query.text if alone else "",
            references=last.query.references if alone else (),
            points=[*(last.query.points if alone else ()), *clicks],
            boxes=tuple(boxes) or (last.query.boxes if alone else ()),
            previous=last.answer.masks[mask],
            history=last.query.history if alone else (),
        )
        return query, clicks

    def correct(
        self, points: Sequence[Point] = (), boxes: Sequence[Box] = (), mask: int = 0
    ) -> Answer:
        """The last answer with one mask drawn again; becomes a turn of its own, so that `undo`
        takes it back.
        """
        query, clicks = self.correction(points, boxes, mask)
        return self.corrected(query, clicks, mask, self.segmenter.batch([query])[0])

    def corrected(self, query: Query, clicks: list[Point], mask: int, drawn: Answer) -> Answer:
        """Puts a mask that was drawn again into the last answer."""
        last = self.turns[-1]
        masks, scores = last.answer.masks.copy(), last.answer.scores.copy()
        if len(drawn.masks):
            masks[mask], scores[mask] = drawn.masks[0], drawn.scores[0]
        answer = replace(last.answer, masks=masks, scores=scores, meta=drawn.meta)
        self.keep(last.query, answer)
        self.turns[-1].clicks, self.turns[-1].corrected = {**last.clicks, mask: clicks}, True
        return answer

    def undo(self) -> Turn | None:
        """Forgets the last turn and returns it; None where there is none."""
        return self.turns.pop() if self.turns else None

    def save(self, folder: str | Path) -> Path:
        """Writes every turn to `turn-N/` and the whole conversation to `session.json`."""
        folder = Path(folder)
        for number, turn in enumerate(self.turns, 1):
            turn.answer.save(folder / f"turn-{number}")
        said = [{"question": t.query.text, **t.answer.to_dict()} for t in self.turns]
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "session.json") as aside:
            aside.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
        return folder
