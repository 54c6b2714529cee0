"""What a speaker is: a model that is shown pictures and asked something, and answers in words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from reasonseg.backbones.speakers.places.family import Family
from reasonseg.backbones.speakers.places.frames import Seen
from reasonseg.backbones.speakers.places.reading import Reading, read_places
from reasonseg.errors import InputError

STRETCHED = 4.0  # long side over short side, from which a picture is padded to a milder shape
PAD = 127
LONGEST = 1000  # words of a request; longer ones are refused before they are sent


class SpeakerError(InputError):
    """A speaker that could not answer: a server that is down, or a reply that is no reply."""


@dataclass(frozen=True)
class Reply:
    """An answer in words. `fed` is the size (height, width) of the first picture as the vision
    encoder saw it, or None where that is not known; tokens are None where nobody counts them.
    """

    text: str
    fed: tuple[int, int] | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


@runtime_checkable
class Speaker(Protocol):
    """A model that answers in words. The `Config` of its file builds it.

    Attributes:
        name: The name of the model.
        family: How it speaks of places.
    """

    name: str
    family: Family

    @property
    def fingerprint(self) -> str:
        """Changes with the model and with how it is asked."""
        ...

    def shape(self, image: np.ndarray) -> tuple[np.ndarray, Seen]:
        """A picture as it is given to this speaker, and how to find the way back (`shaped`)."""
        ...

    def say(
        self,
        pictures: Sequence[np.ndarray],
        text: str,
        *,
        limit: int = 512,
        temperature: float = 0.0,
        plain: bool = False,
    ) -> Reply:
        """Answers a request about pictures.

        Args:
            pictures: uint8 RGB `[h, w, 3]`, of any sizes, in the order of the request.
            text: What is asked.
            limit: At most so many tokens are generated.
            temperature: 0 takes the likeliest token; above 0 samples.
            plain: The text is sent as it is, without a chat template.

        Returns:
            The answer.

        Raises:
            SpeakerError: It cannot answer.
        """
        ...


@dataclass
class Ledger:
    """What was asked of speakers: calls, tokens and seconds; `most` calls may be made.

    `log` holds one entry a call.
    """

    most: int
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    log: list[dict] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Calls that may still be made."""
        return self.most - self.calls

    def errors(self, speaker: Speaker) -> list[str]:
        """What went wrong when this speaker was asked, one line a call that it did not answer."""
        return [e["error"] for e in self.log if e["model"] == speaker.name and "error" in e]

    def silent(self, speaker: Speaker) -> bool:
        """Whether this speaker was asked, and never answered."""
        asked = [e for e in self.log if e["model"] == speaker.name]
        return bool(asked) and len(self.errors(speaker)) == len(asked)

    def say(
        self,
        speaker: Speaker,
        step: str,
        pictures: Sequence[np.ndarray],
        text: str,
        given: Reply | SpeakerError | None = None,
        **options,
    ) -> Reply | None:
        """Asks a speaker and writes it down. None where no call is left or it cannot answer.

        `given`: what it said already, when it was asked together with other things.
        """
        if self.left < 1:
            return None
        self.calls += 1
        began = time.perf_counter()
        entry: dict = {"step": step, "call": self.calls, "model": speaker.name, "request": text}
        self.log.append(entry)
        reply = None
        try:
            if isinstance(given, SpeakerError):
                raise given
            reply = given or speaker.say(pictures, text, **options)
            entry["reply"] = reply.text
            self.tokens_in += reply.tokens_in or 0
            self.tokens_out += reply.tokens_out or 0
            entry["tokens"] = [reply.tokens_in, reply.tokens_out]
        except SpeakerError as error:
            entry["error"] = str(error)
        finally:
            entry["seconds"] = round(time.perf_counter() - began, 3)
            self.seconds += time.perf_counter() - began
        return reply


def shaped(
    image: np.ndarray, family: Family, square: bool = False, side: int = 0, factor: int = 0
) -> tuple[np.ndarray, Seen]:
    """A picture as a speaker is given it, and how to find the way back.

    Args:
        image: uint8 RGB `[h, w, 3]`.
        family: Some were trained on pictures squashed to a square.
        square: Pads to a square; very long pictures are padded to a milder shape in any case.
        side: The longer side is made no longer than this (0: any).
        factor: Sides become multiples of this (0: any), so that a server need not resize.

    Returns:
        (the picture to give, what was done).
    """
    size = (image.shape[0], image.shape[1])
    if family.squash:
        wanted = (family.squash, family.squash)
        return _resized(image, wanted), Seen(size, wanted, wanted, wanted)
    scale = min(side / max(size), 1.0) if side else 1.0
    covered = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
    if factor:
        covered = tuple(max(round(c / factor), 1) * factor for c in covered)
    least = max(covered) if square else int(np.ceil(max(covered) / STRETCHED))
    if factor:
        least = -(-least // factor) * factor
    given = (max(covered[0], least), max(covered[1], least))
    picture = image if covered == size else _resized(image, covered)
    if given != covered:
        padded = np.full((*given, 3), PAD, np.uint8)
        padded[: covered[0], : covered[1]] = picture
        picture = padded
    return picture, Seen(size, given, covered, given if factor else None)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def locate(
    speaker: Speaker,
    image: np.ndarray,
    phrase: str,
    ledger: Ledger,
    *,
    question: bool = False,
    step: str = "locate",
    limit: int | None = None,
    temperature: float = 0.0,
    given: Reply | SpeakerError | None = None,
) -> tuple[Reading, str]:
    """Asks where something is; an answer that cannot be read is asked for once more.

    Args:
        speaker: Who is asked.
        image: uint8 RGB `[h, w, 3]`.
        phrase: A phrase, or a question.
        ledger: What may be asked, and where it is written down.
        question: `phrase` is a question.
        step: The name of this step in the ledger.
        limit: At most so many tokens; None: the family's.
        temperature: 0 takes the likeliest token.
        given: What it said already (`ahead`).

    Returns:
        (what was understood, an error in words; empty where the speaker answered).
    """
    family = speaker.family
    picture, seen = speaker.shape(image)
    request = family.request(phrase, question)
    options = {"limit": limit or family.tokens, "temperature": temperature, "plain": family.plain}
    reading = Reading("unparseable")
    for attempt in range(2):
        text = request if attempt == 0 else again(request, reading)
        reply = ledger.say(
            speaker, step if attempt == 0 else f"{step} again", [picture], text,
            given if attempt == 0 else None, **options,
        )  # fmt: skip
        if reply is None:
            return reading, ledger.log[-1].get("error", "") if ledger.log else ""
        told = seen if reply.fed is None else replace(seen, fed=reply.fed)
        reading = read_places(reply.text, family, told)
        ledger.log[-1] |= {"status": reading.status, "flags": sorted(reading.flags)}
        if reading.status != "unparseable" or family.plain:
            break
    return reading, ""


def ahead(
    speaker: Speaker,
    asked: Sequence[tuple[np.ndarray, str]],
    *,
    limit: int | None = None,
    temperature: float = 0.0,
) -> Sequence[Reply | SpeakerError | None]:
    """What a speaker says first to several (image, question), asked together; for `locate`.

    None for each where the speaker takes them one by one only.
    """
    family, together = speaker.family, getattr(speaker, "say_all", None)
    if together is None or len(asked) < 2:
        return [None] * len(asked)
    requests = [
        ([speaker.shape(image)[0]], family.request(text, family.reasons)) for image, text in asked
    ]
    found = together(
        requests, limit=limit or family.tokens, temperature=temperature, plain=family.plain
    )
    assert len(found) == len(asked)
    return found


def again(request: str, reading: Reading) -> str:
    """The request once more, with the answer that could not be read."""
    shown = reading.raw.strip()[:300] or "(nothing)"
    return (
        f"{request}\n\nYour last answer could not be read, since it holds no place in the form "
        f"that was asked for. It was:\n{shown}\nAnswer again, in exactly that form and without "
        "anything else."
    )


def checked_request(text: str) -> str:
    """The text itself. Raises `InputError` where it has too many words."""
    if (words := len(text.split())) > LONGEST:
        raise InputError(f"the text has {words} words; a speaker is asked with at most {LONGEST}")
    return text
