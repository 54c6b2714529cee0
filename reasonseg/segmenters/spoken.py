"""A vision-language model that says places, and a decoder that draws them; nothing is trained.

Model strings: `speaker:MODEL+DRAWER`, `endpoint:URL#NAME+DRAWER`, `agent:MODEL+DRAWER` (MODEL a hub
id, a folder, or an endpoint), or a YAML file with these settings.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reasonseg.backbones.speakers.base import (
    Ledger,
    Reply,
    Speaker,
    SpeakerError,
    ahead,
    checked_request,
    locate,
)
from reasonseg.backbones.speakers.places.reading import Reading
from reasonseg.config.kinds import config_class, kind_module
from reasonseg.config.schema import parse
from reasonseg.errors import InputError
from reasonseg.nn.cache import Lock, in_turn
from reasonseg.segmenters.base import YAML, Capabilities
from reasonseg.segmenters.drawers import open_drawer
from reasonseg.segmenters.drawing import Drawer, Drawn
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query

CALLS = 6  # of an agent for one question


@dataclass(frozen=True)
class SpokenSettings:
    """What a spoken model consists of. `segmenter`: `spoken` (it says, it is drawn) or `agent`.

    `speaker`, `verifier`: `{kind: local|endpoint, ...}`; without a verifier the speaker judges.
    `drawer`: a packaged model, a folder or a hub id. `calls`: of an agent, at most, a question.
    """

    segmenter: str = "spoken"
    speaker: dict[str, Any] = field(default_factory=dict)
    drawer: str = ""
    verifier: dict[str, Any] = field(default_factory=dict)
    calls: int = CALLS
    notice: str = ""
    memory: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.segmenter not in ("spoken", "agent"):
            raise InputError(f"segmenter: {self.segmenter!r} is not spoken or agent")
        if self.calls < 1:
            raise InputError(f"calls: {self.calls} is below 1")


@dataclass(frozen=True)
class Config:
    """Opens spoken models; they are made of a speaker and a drawer, not of parts."""

    def build(self, parts: Any) -> SpokenSegmenter:
        """Raises `InputError`: a model folder has parts."""
        raise InputError(
            "segmenter: spoken is not for model folders; write --model speaker:MODEL+DRAWER"
        )

    @staticmethod
    def open(source: str | Path, device: Any = None, dtype: Any = None) -> SpokenSegmenter:
        """A segmenter from a model string or a YAML file. Raises `InputError` where it is
        malformed, or a part cannot be loaded.
        """
        settings = settings_from(source)
        speaker = speaker_of(settings.speaker, device, dtype)
        drawer = open_drawer(settings.drawer or None, device, dtype)
        if settings.segmenter == "spoken":
            if not speaker.family.grounds:
                raise InputError(
                    f"{speaker.name} was not trained to say places (family {speaker.family.name}); "
                    "it can be the verifier of an agent, or name another speaker"
                )
            return SpokenSegmenter(settings, speaker, drawer)
        verifier = speaker_of(settings.verifier, device, dtype) if settings.verifier else speaker
        make = kind_module("segmenters", "agent").AgentSegmenter
        return make(settings, speaker, drawer, verifier)


def settings_from(source: str | Path) -> SpokenSettings:
    """The settings of a model string or a YAML file. Raises `InputError` where it is malformed."""
    text = str(source)
    if text.endswith(YAML):
        try:
            content = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--model {text} cannot be read: {reason}") from None
        if not isinstance(content, dict):
            raise InputError(f"--model {text}: it holds no settings; write speaker: and drawer:")
        return parse(SpokenSettings, content)
    scheme, _, rest = text.partition(":")
    kind = "agent" if scheme == "agent" else "spoken"
    if scheme == "agent" and rest.startswith(("endpoint:", "speaker:")):
        scheme, _, rest = rest.partition(":")
    named, plus, drawer = rest.rpartition("+")
    if not plus:
        named, drawer = rest, ""
    if not named:
        raise InputError(
            f"--model {text}: no model is named; write speaker:MODEL+DRAWER, "
            "endpoint:URL#NAME+DRAWER or agent:MODEL+DRAWER"
        )
    if scheme == "endpoint" or named.startswith(("http://", "https://")):
        url, _, model = named.partition("#")
        speaker = {"kind": "endpoint", "url": url, "model": model}
    else:
        speaker = {"kind": "local", "source": named}
    return SpokenSettings(kind, speaker, drawer, about={"name": text})


def speaker_of(settings: dict[str, Any], device: Any = None, dtype: Any = None) -> Speaker:
    """A speaker from its settings. Raises `InputError` where they are malformed."""
    content = dict(settings)
    kind = content.pop("kind", "local")
    config = parse(config_class("backbones.speakers", kind, "speaker.kind"), content, "speaker")
    return config.build(device, dtype)


class SpokenSegmenter:
    """Asks a speaker where the thing is, and draws the places that it says.

    Threads may share it: calls of `batch` run one after another.
    """

    backbone = None
    references = None
    prompter = None

    def __init__(self, settings: SpokenSettings, speaker: Speaker, drawer: Drawer):
        self.settings, self.speaker, self.drawer = settings, speaker, drawer
        self.turn = Lock()

    @property
    def capabilities(self) -> Capabilities:
        """Words and places; it may answer absent; no answer can be forced on it."""
        return Capabilities(words=True, references=False, places=True, absent=True, forced=False)

    @property
    def fingerprint(self) -> str:
        """Changes with speaker, drawer and the number of calls."""
        told = f"{self.speaker.fingerprint} {self.drawer.name} {self.settings.calls}"
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        return f"{self.settings.segmenter}-{self.speaker.name}-{digest}"

    def __call__(self, query: Query, **options: Any) -> Answer:
        """Answers one question; `options` are those of `batch`."""
        return self.batch([query], **options)[0]

    @in_turn
    def batch(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        force_seg: bool = False,
        absent_threshold: float = 0.5,
        agreement: bool = False,
        refine: bool = False,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        """Answers several questions. What a speaker says first about each is asked for together.

        Args:
            queries: The questions.
            max_new_tokens: At most so many tokens a call; None: what the family needs.
            temperature: 0 takes the likeliest token; above 0 samples.
            seed: Only 0: a speaker has no seed.
            force_seg: Not for this kind.
            absent_threshold: Not for this kind: a speaker says it or does not.
            agreement: Not for this kind.
            refine: Not for this kind.
            on_text: Is called with (number of the query, answer).

        Returns:
            Answers; masks bool `[n, h, w]` at image size. `meta` has `calls`, `tokens`, what the
            speaker said (`said`) and `flags`. Status `unparseable` where that cannot be read.

        Raises:
            InputError: An option is not for this kind, a question has references, or the speaker
                cannot be reached.
        """
        given = {"force_seg": force_seg, "agreement": agreement, "refine": refine, "seed": seed}
        given["absent_threshold"] = absent_threshold != 0.5
        if wrong := [name for name, value in given.items() if value]:
            raise InputError(f"{wrong[0]} is not for models that speak; leave it out")
        for query in queries:
            self._check(query)
        began, answers = time.perf_counter(), []
        first = self._ahead(queries, max_new_tokens, temperature)
        shared = (time.perf_counter() - began) / max(len(queries), 1)
        for i, query in enumerate(queries):
            began = time.perf_counter()
            answer = self._answered(query, max_new_tokens, temperature, first.get(i))
            answer.meta["seconds"] = round(time.perf_counter() - began + shared, 4)
            answers.append(answer)
            if on_text is not None:
                on_text(i, answer.text)
        return answers

    def forced(self, queries: Sequence[Query], answers: Sequence[str] | None = None) -> list:
        """Raises `InputError`: a text of ours has no place in it."""
        raise InputError("models that speak have no teacher-forced answers; ask them instead")

    def loss(self, samples: Sequence[Any], counts: Any = None) -> dict:
        """Raises `InputError`: these models are not trained here."""
        raise InputError("models that speak are not trained here; take one with <SEG>")

    def forget(self) -> None:
        """Forgets what is kept of pictures."""
        self.drawer.forget()

    def eval(self) -> SpokenSegmenter:
        """The segmenter itself."""
        return self

    def _check(self, query: Query) -> None:
        if query.references:
            raise InputError(
                "models that speak take words, points and boxes; for reference images take an "
                "agent, or a model that was trained on them"
            )
        checked_request(query.text)

    def _ahead(
        self, queries: Sequence[Query], limit: int | None, temperature: float
    ) -> dict[int, Reply | SpeakerError]:
        """What the speaker says first to each question, by its number; nothing for a single one."""
        asked = [
            i for i, query in enumerate(queries) if query.text.strip() and not query.references
        ]
        if len(asked) < 2 or not self.speaker.family.grounds:
            return {}
        said = ahead(
            self.speaker,
            [(queries[i].image, queries[i].text) for i in asked],
            limit=limit,
            temperature=temperature,
        )
        return {i: reply for i, reply in zip(asked, said, strict=True) if reply is not None}

    def _answered(
        self,
        query: Query,
        limit: int | None,
        temperature: float,
        given: Reply | SpeakerError | None = None,
    ) -> Answer:
        ledger = Ledger(2)
        if not query.text.strip():
            return self._by_places(query)
        reading, error = locate(
            self.speaker,
            query.image,
            query.text,
            ledger,
            question=self.speaker.family.reasons,
            limit=limit,
            temperature=temperature,
            given=given,
        )
        if error:
            raise SpeakerError(error)
        drawn = self.drawer.places(query.image, reading.places)
        return answer_of(query, reading, drawn, ledger, {"model": self.speaker.name})

    def _by_places(self, query: Query) -> Answer:
        """Points and boxes without words need no speaker."""
        from reasonseg.backbones.speakers.places.reading import Place

        box = query.boxes[0] if query.boxes else None
        drawn = self.drawer.places(query.image, [Place(box, tuple(query.points), "")])
        return Answer("", drawn.masks, drawn.scores, drawn.labels, "found", image=query.image)


def answer_of(
    query: Query, reading: Reading, drawn: Drawn, ledger: Ledger, meta: dict[str, Any]
) -> Answer:
    """The answer for places that were said and drawn."""
    keep = [i for i, mask in enumerate(drawn.masks) if mask.any()]
    labels = [drawn.labels[i] or query.text for i in keep]
    status = "found" if keep else "absent" if reading.status == "absent" else "unparseable"
    text = ", ".join(f"{label} <SEG>" for label in labels) + "." if keep else ""
    meta = {
        **meta,
        "calls": ledger.calls,
        "tokens": ledger.tokens_in + ledger.tokens_out,
        "said": reading.raw,
        "flags": sorted(reading.flags),
    }
    if status == "absent":
        text = "<REJ>."
    masks = drawn.masks[keep] if keep else np.zeros((0, *query.size), bool)
    return Answer(text, masks, drawn.scores[keep], labels, status, meta=meta, image=query.image)
