"""A conversation about images: follow-up questions, corrections by points or boxes, references.

The model caches the features of an image (`segmenter.cache`), so only the first question about an
image runs the encoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import atomic_write
from reasonseg.structures.query import Box, Point, Query, Reference

MAX_TURNS, MAX_BYTES = 100, 512 * 2**20  # of a conversation; beyond them old turns are dropped
MAX_REFERENCES = 16


@dataclass
class Turn:
    """One question of a conversation and its answer.

    Attributes:
        query: The question, with its image.
        answer: The answer.
        clicks: All correction points so far, by the index of their mask.
        corrected: Whether this turn is a correction of the turn before.
    """

    query: Query
    answer: Answer
    clicks: dict[int, list[Point]] = field(default_factory=dict)
    corrected: bool = False


class Session:
    """A conversation: its turns, its current image and its references.

    Args:
        segmenter: The model, a `Segmenter`.
        image: uint8 RGB `[h, w, 3]`, the first image, or None to give one later with `look`.
        memory: The number of earlier turns that the model reads; None for the model's setting.
    """

    def __init__(self, segmenter: Any, image: np.ndarray | None = None, memory: int | None = None):
        self.segmenter = segmenter
        self.memory = segmenter.settings.memory if memory is None else memory
        self.image: np.ndarray | None = None
        self.turns: list[Turn] = []
        self.references: list[Reference] = []
        if image is not None:
            self.look(image)

    def look(self, image: np.ndarray) -> None:
        """Changes the image. The model does not read turns about earlier images; references stay.

        Raises `InputError` where the image is not valid.

        Args:
            image: uint8 RGB `[h, w, 3]`.
        """
        self.image = Query(image, text="?").image

    def copy(self) -> Session:
        """Copies the conversation, to try a turn that may fail. `take` adopts the copy.

        Returns:
            A session with the same turns, image and references.
        """
        trial = Session(self.segmenter, memory=self.memory)
        trial.image, trial.turns, trial.references = (
            self.image,
            list(self.turns),
            list(self.references),
        )
        return trial

    def take(self, trial: Session) -> None:
        """Adopts the image and the references of a copy."""
        self.image, self.references = trial.image, trial.references

    def show(self, reference: Reference) -> None:
        """Adds a reference to all following questions.

        Args:
            reference: An annotated reference image.

        Raises:
            InputError: There are `MAX_REFERENCES` references already.
        """
        if len(self.references) >= MAX_REFERENCES:
            raise InputError(f"there are {MAX_REFERENCES} references already; remove some first")
        self.references.append(reference)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the images and masks of the conversation; shared arrays count once."""
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
        """The turns that the model reads with the next question.

        Returns:
            (question, answer text) of the last `memory` turns with text about the current image,
            the oldest first. Corrections are left out.
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
        """Builds the query of the next question, with references and history.

        Args:
            text: The question.
            points: `(x, y, 1 or 0)` in pixels, 1 on the object and 0 off it.
            boxes: `(x0, y0, x1, y1)` in pixels.

        Returns:
            The query. Its history is empty where there is no text.

        Raises:
            InputError: There is no image, a field is not valid, or all fields are empty.
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
        """Asks the next question and adds the turn to the conversation.

        Raises `InputError` as `query` does.

        Args:
            text: The question.
            points: `(x, y, 1 or 0)` in pixels, 1 on the object and 0 off it.
            boxes: `(x0, y0, x1, y1)` in pixels.
            on_text: Called with the text so far during generation, before the masks exist.
            **options: The options of `Segmenter.batch`.

        Returns:
            The answer.
        """
        query = self.query(text, points, boxes)
        given = {} if on_text is None else {"on_text": lambda _, so_far: on_text(so_far)}
        answer = self.segmenter.batch([query], **given, **options)[0]
        return self.keep(query, answer)

    def keep(self, query: Query, answer: Answer) -> Answer:
        """Adds a turn whose answer was computed elsewhere.

        Old turns are dropped beyond `MAX_TURNS` turns or `MAX_BYTES` bytes.

        Args:
            query: The question.
            answer: Its answer.

        Returns:
            The answer.
        """
        self.turns.append(Turn(query, answer))
        while len(self.turns) > MAX_TURNS or (len(self.turns) > 1 and self.nbytes > MAX_BYTES):
            del self.turns[0]
        return answer

    def correction(
        self, points: Sequence[Point] = (), boxes: Sequence[Box] = (), mask: int = 0
    ) -> tuple[Query, list[Point]]:
        """Builds the query that corrects a mask of the last answer.

        The text, references, points and boxes of the last query are used again only where its
        answer has exactly one mask. New boxes replace old ones.

        Args:
            points: `(x, y, 1 or 0)` in pixels, 1 on the object and 0 off it.
            boxes: `(x0, y0, x1, y1)` in pixels.
            mask: The index of the mask, from 0.

        Returns:
            (query, all correction points on that mask so far).

        Raises:
            InputError: There is no answer about the current image, it has no such mask, or points
                and boxes are both empty.
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
        """Corrects one mask of the last answer.

        The correction is its own turn, so `undo` removes it. Raises `InputError` as `correction`
        does.

        Args:
            points: `(x, y, 1 or 0)` in pixels, 1 on the object and 0 off it.
            boxes: `(x0, y0, x1, y1)` in pixels.
            mask: The index of the mask, from 0.

        Returns:
            The last answer with the new mask and its score.
        """
        query, clicks = self.correction(points, boxes, mask)
        return self.corrected(query, clicks, mask, self.segmenter.batch([query])[0])

    def corrected(self, query: Query, clicks: list[Point], mask: int, drawn: Answer) -> Answer:
        """Adds a turn: the last answer with one mask replaced.

        Args:
            query: The query of the correction.
            clicks: All correction points on that mask so far.
            mask: The index of the mask, from 0.
            drawn: The answer to the query; its first mask is used, if it has one.

        Returns:
            The last answer with the new mask and its score.
        """
        last = self.turns[-1]
        masks, scores = last.answer.masks.copy(), last.answer.scores.copy()
        if len(drawn.masks):
            masks[mask], scores[mask] = drawn.masks[0], drawn.scores[0]
        answer = replace(last.answer, masks=masks, scores=scores, meta=drawn.meta)
        self.keep(last.query, answer)
        self.turns[-1].clicks, self.turns[-1].corrected = {**last.clicks, mask: clicks}, True
        return answer

    def undo(self) -> Turn | None:
        """Removes the last turn and returns it; None where there is none."""
        return self.turns.pop() if self.turns else None

    def save(self, folder: str | Path) -> Path:
        """Writes every turn to `turn-N/` and the whole conversation to `session.json`.

        Args:
            folder: The folder to write to; it is made if it does not exist.

        Returns:
            The path of the folder.
        """
        folder = Path(folder)
        for number, turn in enumerate(self.turns, 1):
            turn.answer.save(folder / f"turn-{number}")
        said = [{"question": t.query.text, **t.answer.to_dict()} for t in self.turns]
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "session.json") as aside:
            aside.write_text(
                json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        return folder
