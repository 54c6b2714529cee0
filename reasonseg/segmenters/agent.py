"""An agent that checks itself: propose, draw, gate, verify, and answer, within a budget of calls.

A vision-language model proposes places in its own words (one arm) and, where the drawer reads
phrases, the question itself and phrases for it (the other arm). The drawer's own score gates what
needs no look; a verifier is shown only what lies between. Whatever a model says, an agent answers
with the best that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reasonseg.backbones.speakers.base import (
    Ledger,
    Reply,
    Speaker,
    SpeakerError,
    checked_request,
    locate,
)
from reasonseg.backbones.speakers.places.reading import Place
from reasonseg.segmenters import judging
from reasonseg.segmenters.base import Capabilities
from reasonseg.segmenters.drawing import Drawer, Drawn
from reasonseg.segmenters.spoken import SpokenSegmenter, SpokenSettings
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query, Reference

REFUSED, TAKEN = 0.35, 0.85  # the drawer's own score: below and above, nobody has to look
ALIKE = 0.85  # IoU from which two arms have drawn the same
FOUND_AGAIN = 0.5  # IoU with an example's own mask, from which a phrase is right
SMALL = 0.02  # of the picture: things below get a second look from near
AROUND = 3.0  # sides of the closer look, in sides of the box
MOST = 8  # masks that a verifier is shown
PHRASES = (
    "Question about the photo: {question}\nName the thing that answers it in one to four words, as "
    "one would say it to somebody who cannot see the question. Write only these words. If nothing "
    "in the photo answers it, write: none"
)
SAME_THING = (
    "In the first photo a thing is marked {colour}. Name it in one to four words, so that the same "
    "kind of thing can be found in the second photo. Write only these words."
)


@dataclass
class Candidate:
    """One way to answer: masks, scores and labels, and which arm it comes from."""

    arm: str
    masks: np.ndarray
    scores: np.ndarray
    labels: list[str]

    @property
    def union(self) -> np.ndarray:
        """All masks as one, bool `[h, w]`."""
        return np.asarray(self.masks.any(0))

    @property
    def score(self) -> float:
        """The mean of the drawer's scores."""
        return float(self.scores.mean()) if len(self.scores) else 0.0

    def kept(self, which: Sequence[int]) -> Candidate:
        """The same with some of its masks."""
        index = list(which)
        return Candidate(
            self.arm, self.masks[index], self.scores[index], [self.labels[i] for i in index]
        )


@dataclass
class Case:
    """One question while an agent works on it, and the trace that it leaves."""

    query: Query
    ledger: Ledger
    best: Candidate | None = None
    refusals: int = 0  # steps that said that there is nothing
    trace: list[dict] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def note(self, step: str, **facts: Any) -> None:
        """Writes a step down."""
        self.trace.append({"step": step, "calls": self.ledger.calls, **facts})


class AgentSegmenter(SpokenSegmenter):
    """Answers by an agent; `Answer.meta` has `calls`, `tokens`, the whole `trace`, and `errors` of
    calls that were not answered. A question that the speaker never answers is an error, also where
    the drawer has an answer of its own.
    """

    def __init__(
        self, settings: SpokenSettings, speaker: Speaker, drawer: Drawer, verifier: Speaker
    ):
        super().__init__(settings, speaker, drawer)
        self.verifier = verifier

    @property
    def capabilities(self) -> Capabilities:
        """Words, examples (where the drawer reads phrases) and places."""
        return Capabilities(
            words=True, references=self.drawer.reads, places=True, absent=True, forced=False
        )

    @property
    def fingerprint(self) -> str:
        """Changes with speaker, verifier, drawer and the number of calls."""
        return f"{super().fingerprint}-{self.verifier.fingerprint[-24:]}"

    def _check(self, query: Query) -> None:
        if query.references and not self.drawer.reads:
            super()._check(query)
        checked_request(query.text)

    def _answered(
        self,
        query: Query,
        limit: int | None,
        temperature: float,
        given: Reply | SpeakerError | None = None,
    ) -> Answer:
        if not query.text.strip() and not query.references:
            return self._by_places(query)
        case = Case(query, Ledger(self.settings.calls))
        candidates = self._proposed(case, limit, temperature, given)
        if case.ledger.silent(self.speaker):
            raise SpeakerError(case.ledger.errors(self.speaker)[0])
        case.best = self._verified(case, candidates)
        if case.best is not None and len(case.best.masks):
            self._closer(case)
        return self._finished(case)

    # --- propose and draw

    def _proposed(
        self,
        case: Case,
        limit: int | None,
        temperature: float,
        given: Reply | SpeakerError | None = None,
    ) -> list[Candidate]:
        query, candidates = case.query, list[Candidate]()
        if query.references:
            return self._by_example(case)
        if self.speaker.family.grounds:
            reading, _ = locate(
                self.speaker, query.image, query.text, case.ledger,
                question=self.speaker.family.reasons, step="propose places", limit=limit,
                temperature=temperature, given=given,
            )  # fmt: skip
            case.refusals += reading.status == "absent"
            case.note("propose places", status=reading.status, flags=sorted(reading.flags),
                      places=[p.box for p in reading.places])  # fmt: skip
            if reading.places:
                candidates.append(_candidate("places", self._draw_places(query, reading.places)))
        if self.drawer.reads:
            candidates += self._by_phrase(case)
        case.note("draw", arms=[(c.arm, len(c.masks), round(c.score, 3)) for c in candidates])
        return [c for c in candidates if len(c.masks)]

    def _draw_places(self, query: Query, places: Sequence[Place]) -> Drawn:
        return self.drawer.places(query.image, places[:MOST])

    def _by_phrase(self, case: Case) -> list[Candidate]:
        """The question as it is, and the phrase that the speaker makes of it."""
        found = []
        drawn = self.drawer.phrase(case.query.image, case.query.text)
        if len(drawn.masks):
            found.append(_candidate("question", drawn))
        case.refusals += drawn.absent
        if self.speaker.family.reasons and case.ledger.left > 2:
            phrase = self._phrase(case, PHRASES.replace("{question}", case.query.text))
            if phrase and phrase.lower() != "none":
                drawn = self.drawer.phrase(case.query.image, phrase)
                if len(drawn.masks):
                    found.append(_candidate(f"phrase {phrase!r}", drawn))
            elif phrase:
                case.refusals += 1
        return found

    def _phrase(
        self, case: Case, request: str, pictures: Sequence[np.ndarray] | None = None
    ) -> str:
        shown = list(pictures or [case.query.image])
        reply = case.ledger.say(self.speaker, "propose phrase", shown, request, limit=24)
        return "" if reply is None else _phrase_of(reply.text)

    def _by_example(self, case: Case) -> list[Candidate]:
        """Phrases for the example; a phrase is right where it finds the example's own mask."""
        reference = case.query.references[0]
        mask = _mask_of(reference)
        colour = judging.contrasting(reference.image, mask)
        marked = judging.tinted(reference.image, mask, colour)
        phrases = [p for p in ((reference.label or "").strip(), case.query.text.strip()) if p]
        request = SAME_THING.replace("{colour}", colour)
        scored: list[tuple[float, str]] = []
        for attempt in range(3):
            if attempt >= len(phrases):
                if case.ledger.left < 1:
                    break
                tried = f" Not: {', '.join(p for _, p in scored)}." if scored else ""
                phrase = self._phrase(case, request + tried, [marked, case.query.image])
                if not phrase or phrase in phrases:
                    break
                phrases.append(phrase)
            again = self.drawer.phrase(reference.image, phrases[attempt])
            scored.append((_iou(_candidate("", again).union, mask), phrases[attempt]))
            case.note(
                "check with the example", phrase=phrases[attempt], iou=round(scored[-1][0], 3)
            )
            if scored[-1][0] > FOUND_AGAIN:
                break
        if not scored:
            return []
        score, phrase = max(scored)
        drawn = self.drawer.phrase(case.query.image, phrase)
        found = _candidate(f"phrase {phrase!r}", drawn)
        if score > FOUND_AGAIN:  # nobody needs to look
            found.scores = np.maximum(found.scores, TAKEN)
        return [found] if len(found.masks) else []

    # --- gate and verify

    def _verified(self, case: Case, candidates: list[Candidate]) -> Candidate | None:
        passed = [c.kept([i for i, s in enumerate(c.scores) if s >= REFUSED]) for c in candidates]
        passed = [c for c in passed if len(c.masks)] or candidates[:1]
        case.note("gate", kept=[(c.arm, [round(float(s), 3) for s in c.scores]) for c in passed])
        if not passed:
            return None
        best = passed[0]
        for other in passed[1:]:
            if _iou(best.union, other.union) < ALIKE:
                best = self._duel(case, best, other)
            elif other.score > best.score:
                best = other
        if best.scores.min() >= TAKEN and not case.refusals and len(passed) == 1:
            return best
        return self._chosen(case, best)

    def _duel(self, case: Case, prior: Candidate, other: Candidate) -> Candidate:
        """The better of two, judged twice with the order swapped; disagreement keeps the prior."""
        if case.ledger.left < 2 or self.verifier.family.plain:
            return prior
        image, question = case.query.image, self._question(case)
        verdicts = []
        for first, second in ((prior, other), (other, prior)):
            one = judging.contrasting(image, first.union)
            two = judging.contrasting(image, second.union)
            shown = [image, judging.tinted(image, first.union, one),
                     judging.tinted(image, second.union, two)]  # fmt: skip
            request = judging.duel_request(question, (one, two))
            reply = case.ledger.say(self.verifier, "judge", shown, request, limit=16)
            won = judging.winner_of(reply.text) if reply is not None else None
            verdicts.append({"A": first, "B": second}.get(won or ""))
            case.pictures[f"judge {case.ledger.calls}"] = np.hstack(shown[1:])
        better = other if all(v is other for v in verdicts) else prior
        case.note("judge", between=[prior.arm, other.arm], taken=better.arm)
        return better

    def _chosen(self, case: Case, candidate: Candidate) -> Candidate | None:
        """What a verifier keeps of the numbered masks. None: it says that there is nothing."""
        if case.ledger.left < 1 or self.verifier.family.plain:
            return candidate
        order = np.argsort(-candidate.scores)[:MOST]
        some = candidate.kept(order.tolist())
        shown = judging.numbered(case.query.image, some.masks)
        case.pictures[f"verify {case.ledger.calls + 1}"] = shown
        request = judging.choice_request(
            self._question(case), judging.facts_of(some.masks, some.labels), len(some.masks)
        )
        reply = case.ledger.say(
            self.verifier, "verify", [case.query.image, shown], request, limit=200
        )
        kept = judging.kept_of(reply.text, len(some.masks)) if reply is not None else None
        case.note("verify", shown=len(some.masks), kept=kept)
        if kept is None:
            return candidate
        if not kept:
            case.refusals += 1
            # a refusal against a drawer that is sure needs a second voice
            return None if case.refusals > 1 or some.score < TAKEN else candidate
        return some.kept(kept)

    # --- look closer, and answer

    def _closer(self, case: Case) -> None:
        """A second look from near at a small thing; the new mask has to agree with the old."""
        best, image = case.best, case.query.image
        if best is None or len(best.masks) != 1 or case.query.references:
            return
        if best.union.mean() >= SMALL or case.ledger.left < 1 or not self.speaker.family.grounds:
            return
        x0, y0, x1, y1 = _window(best.masks[0])
        crop = np.ascontiguousarray(image[y0:y1, x0:x1])
        if min(crop.shape[:2]) < 16:
            return
        reading, _ = locate(
            self.speaker, crop, best.labels[0] or case.query.text,
            Ledger(0) if case.ledger.left < 1 else case.ledger, step="look closer",
        )  # fmt: skip
        moved = [
            Place(
                (p.box[0] + x0, p.box[1] + y0, p.box[2] + x0, p.box[3] + y0) if p.box else None,
                tuple((x + x0, y + y0, on) for x, y, on in p.points), p.label,
            )
            for p in reading.places[:1]
        ]  # fmt: skip
        if not moved:
            case.note("look closer", status=reading.status)
            return
        drawn = self.drawer.places(image, moved)
        near = _iou(drawn.masks[0], best.masks[0])
        better = near > 0.3 and float(drawn.scores[0]) > best.score
        case.note("look closer", iou=round(near, 3), taken=better)
        if better:
            case.best = Candidate("closer", drawn.masks, drawn.scores, best.labels)

    def _question(self, case: Case) -> str:
        return case.query.text.strip() or "the same kind of thing as in the example"

    def _finished(self, case: Case) -> Answer:
        query, best, ledger = case.query, case.best, case.ledger
        meta = {
            "model": self.speaker.name, "calls": ledger.calls, "most_calls": ledger.most,
            "tokens": ledger.tokens_in + ledger.tokens_out, "trace": case.trace,
            "conversation": ledger.log, "errors": [e["error"] for e in ledger.log if "error" in e],
        }  # fmt: skip
        if best is None or not len(best.masks) or not best.union.any():
            absent = case.refusals > 0
            blank = np.zeros((0, *query.size), bool)
            status = "absent" if absent else "unparseable"
            answer = Answer("<REJ>." if absent else "", blank, np.zeros(0), [], status, meta=meta)
        else:
            labels = [label or query.text for label in best.labels]
            text = ", ".join(f"{label} <SEG>" for label in labels) + "."
            answer = Answer(text, best.masks, best.scores, labels, "found", meta=meta)
        answer.image = query.image
        answer.pictures = case.pictures
        return answer


def _candidate(arm: str, drawn: Drawn) -> Candidate:
    keep = [i for i, mask in enumerate(drawn.masks) if mask.any()]
    scores = np.asarray(drawn.scores, np.float32)
    return Candidate(arm, drawn.masks[keep], scores[keep], [drawn.labels[i] for i in keep])


def _phrase_of(text: str) -> str:
    """A phrase of at most six words, or nothing."""
    said = judging.spoken(text).strip().strip("\"'.`*").splitlines()
    words = (said[0] if said else "").split()
    return " ".join(words[:6]).strip("\"'.,:;`*")[:60]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def _mask_of(reference: Reference) -> np.ndarray:
    from reasonseg.structures.reference_masks import region

    return region(reference)


def _window(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The part of the picture around a mask, `AROUND` times its box, as (x0, y0, x1, y1)."""
    ys, xs = np.nonzero(mask)
    height, width = mask.shape
    x, y = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    half = AROUND * max(np.ptp(xs) + 1, np.ptp(ys) + 1, 16) / 2
    return (
        max(int(x - half), 0), max(int(y - half), 0),
        min(int(x + half), width), min(int(y + half), height),
    )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Agents are opened by `spoken`; a model folder has none."""

    def build(self, parts: Any) -> AgentSegmenter:
        """Raises `InputError`: a model folder has parts."""
        from reasonseg.errors import InputError

        raise InputError(
            "segmenter: agent is not for model folders; write --model agent:MODEL+DRAWER"
        )
