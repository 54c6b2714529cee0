"""A segmenter turns a query into an answer. One file a way of answering; a model's settings say
which one it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch

from reasonseg.checkpoints.folder import load, push, save
from reasonseg.checkpoints.parts import Parts, build_parts, fitted
from reasonseg.config.kinds import config_class
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.errors import InputError
from reasonseg.nn.feature_store import FeatureStore
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample


@dataclass(frozen=True)
class Capabilities:
    """What a model can be asked. Commands look here before they start, and say in one line what
    a model cannot do.
    """

    words: bool  # questions in words
    references: bool  # annotated images as examples
    places: bool  # points, boxes, and masks to correct
    absent: bool  # it may answer that a thing is not in the image

    def require(
        self, what: str, *needs: Literal["words", "references", "places", "absent"]
    ) -> None:
        """Raises `InputError` where the model lacks one of `needs`; `what` is who asks, such as
        `eval scenes`.
        """
        reasons = {
            "words": (
                "asks in words, and this model reads none: it takes examples only; take one with "
                "a language model"
            ),
            "references": (
                "shows examples, and this model was not trained on references; take one that was"
            ),
            "places": (
                "gives points and boxes, and this model takes none; take one with a SAM decoder"
            ),
            "absent": "asks for what is not there, and this model never answers absent",
        }
        for need in needs:
            if not getattr(self, need):
                raise InputError(f"{what} {reasons[need]}")


class SegmenterProtocol(Protocol):
    """What evaluation, serving and training ask of a segmenter, whatever its way of answering."""

    settings: ModelSettings

    @property
    def capabilities(self) -> Capabilities:
        """What it can be asked."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with its settings and weights."""
        ...

    def batch(self, queries: Sequence[Query], **options: Any) -> list[Answer]:
        """Answers in the order of the queries, the same as one by one."""
        ...

    def forced(
        self, queries: Sequence[Query], answers: Sequence[str] | None = None
    ) -> list[Answer]:
        """Masks of given answer texts: nothing is generated."""
        ...

    def loss(
        self, samples: Sequence[Sample], counts: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of true answers."""
        ...


class Segmenter(Parts):
    """A model that answers. `segmenter(query)` answers one question, `segmenter.batch(queries)`
    many.

    `Segmenter.from_pretrained` reads a model and returns the way of answering that its settings
    name (`segmenter`, by default `embedding`). A kind implements `batch`, `forced`, `loss` and
    `capabilities`.
    """

    def __init__(self, parts: Parts):
        super().__init__(
            parts.settings,
            parts.backbone,
            parts.prompter,
            parts.decoder,
            parts.references,
            parts.refiner,
        )
        self.origin = parts.origin
        self.feature_store: FeatureStore | None = (
            None  # of `loss`, for encoders that are not trained
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        clip: str | None = None,
        sam: str | None = None,
        template: str | None = None,
        read: str | None = None,
        allow: Sequence[str] = (),
        revision: str | None = None,
        compile: bool = False,
    ) -> Segmenter:
        """A model from a folder, a hub id (`owner/name`), a released checkpoint, or (None) the
        packaged one.

        `device` None takes CUDA where there is one; `dtype` (`float32`, `bfloat16`, `float16`) None
        is float32 on CPU and bfloat16 on CUDA. `quantization` (`int8`, `nf4`) is of the language
        model's layers. `clip` is the folder of a released checkpoint's vision tower, `sam` a mask
        decoder to use instead (.pth, folder or hub id), or the refiner beside SegGPT. `template`
        names the conversation strings, `read` (`predicting`, `at`) the state of `<SEG>` that
        prompts the decoder. `allow` lists prefixes of weights that need not fit, `revision` is a
        hub commit. `compile` makes each token faster after a first, slow one. Raises `InputError`
        where the source does not exist, a weight is missing, left over or of another shape, or an
        option does not apply.
        """
        parts = load(
            source,
            device=device,
            dtype=dtype,
            quantization=quantization,
            clip=clip,
            sam=sam,
            template=template,
            read=read,
            allow=tuple(allow),
            revision=revision,
            compile=compile,
        )
        return segmenter_of(parts)

    @classmethod
    def build(cls, settings: ModelSettings) -> Segmenter:
        """A model with fresh weights. Raises `InputError` where its parts do not fit one
        another.
        """
        return segmenter_of(build_parts(settings))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a folder that `from_pretrained` reads; `dtype` is that of the stored weights
        (None: as they are).
        """
        save(self, folder, dtype)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Uploads the folder to the Hugging Face hub."""
        push(self, repo_id, private=private, dtype=dtype)

    def with_references(self, kind: Kind) -> Segmenter:
        """The same model, its parts shared, with a fresh prompter for examples."""
        fit = fitted(kind, self.backbone, self.decoder) or kind
        settings = replace(self.settings, references=fit)
        return segmenter_of(
            Parts(settings, self.backbone, self.prompter, self.decoder, fit.config.build())
        )

    def reading_examples(self) -> Self:
        """The same model, whose backbone reads references beside words from now on; raises
        `InputError` where it cannot.
        """
        kind = self.settings.backbone
        if (
            self.backbone is None
            or kind is None
            or "examples" not in kind.config.__dataclass_fields__
        ):
            raise InputError("examples: this model's backbone does not read references; llava does")
        kind = Kind(kind.kind, replace(kind.config, examples=True))
        self.settings, self.backbone.config, self.origin = (
            replace(self.settings, backbone=kind),
            kind.config,
            None,
        )
        return self

    @property
    def capabilities(self) -> Capabilities:
        """What it can be asked."""
        raise NotImplementedError

    def forward(self, query: Query, **options: Any) -> Answer:
        """One answer; the options are those of `batch`."""
        return self.batch([query], **options)[0]

    def batch(
        self,
        queries: Sequence[Query],
        *,
        on_text: Callable[[int, str], None] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers in the order of the queries, the same as one by one."""
        raise NotImplementedError

    def forced(
        self, queries: Sequence[Query], answers: Sequence[str] | None = None
    ) -> list[Answer]:
        """Masks of given answer texts (`<SEG>.` where they are absent): nothing is generated, so
        refusing is not possible.
        """
        raise NotImplementedError

    def loss(
        self, samples: Sequence[Sample], counts: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of true answers: `loss` and its parts."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forgets what is kept of images."""


def segmenter_of(parts: Parts) -> Segmenter:
    """The segmenter that the settings of these parts name."""
    kind = parts.settings.segmenter
    config = kind.config if kind is not None else config_class("segmenters", "embedding")()
    return config.build(parts)
