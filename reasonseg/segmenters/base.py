"""A segmenter turns a query into an answer. One file a way of answering; a model's settings say
which one it uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from reasonseg.checkpoints.folder import load, push, save
from reasonseg.checkpoints.parts import Parts, build_parts, fitted
from reasonseg.config.kinds import config_class, kind_module
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.errors import InputError
from reasonseg.nn.feature_store import FeatureStore
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

SPOKEN = ("speaker", "endpoint", "agent")  # how names of models begin that say places
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Capabilities:
    """What a model can be asked. Commands look here before they start, and say in one line what
    a model cannot do.

    Attributes:
        words: Questions in words.
        references: Annotated images as examples.
        places: Points, boxes, and masks to correct.
        absent: It may answer that a thing is not in the image.
        forced: A true answer can be forced on it (teacher forcing).
    """

    words: bool
    references: bool
    places: bool
    absent: bool
    forced: bool = True

    def require(
        self, what: str, *needs: Literal["words", "references", "places", "absent"]
    ) -> None:
        """Refuses where the model lacks something.

        Args:
            what: Who asks, such as `eval scenes`; the message begins with it.
            *needs: What is needed.

        Raises:
            InputError: The model lacks one of `needs`; the message is one line.
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


@runtime_checkable
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
        """Answers several questions, the same as one by one.

        Args:
            queries: The questions, about any images.
            **options: How to answer; `EmbeddingSegmenter.batch` lists them.

        Returns:
            Answers in the order of the queries; masks bool `[n, h, w]` at image size.
        """
        ...

    def forced(
        self, queries: Sequence[Query], answers: Sequence[str] | None = None
    ) -> list[Answer]:
        """Draws the masks of given answer texts (teacher forcing); nothing is generated.

        Args:
            queries: The questions.
            answers: One text a query, with `<SEG>` where a mask is wanted; None: `<SEG>.` each.

        Returns:
            Answers with one mask for each `<SEG>`.
        """
        ...

    def loss(
        self, samples: Sequence[Sample], counts: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Computes the losses of true answers.

        Args:
            samples: Questions with their true answers.
            counts: `tokens` and `masks` of the whole step, where the samples are a part of it.

        Returns:
            `loss` (weighted sum), its parts `text`, `bce`, `dice`, `iou`, and `text_accuracy`.
        """
        ...


class Segmenter(Parts):
    """A model that answers: `segmenter(query)` one question, `segmenter.batch(queries)` many.

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
        self.feature_store: FeatureStore | None = None  # of `loss`, for frozen encoders

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
        """Loads a model: a folder of ours, a hub id, a released checkpoint, or the packaged one.

        Args:
            source: A folder, a weight file, a hub id (`owner/name`), or a packaged name (`tiny`,
                `tiny-seggpt`). None: the packaged default. Also a model that says places
                (`speaker:MODEL+DRAWER`, `endpoint:URL#NAME+DRAWER`, `agent:MODEL+DRAWER`, or a YAML
                file), for which only `device` and `dtype` apply.
            device: Where it runs; None: CUDA where there is one, else the CPU.
            dtype: `float32`, `bfloat16` or `float16`; None: float32 on CPU, bfloat16 on CUDA.
            quantization: `int8` or `nf4`, of the language model's layers (bitsandbytes).
            clip: Folder of the vision tower, for released checkpoints that come without one.
            sam: Mask decoder to use instead (.pth, folder or hub id); beside SegGPT its refiner.
            template: Conversation strings: `plain`, `llava_v1`, `vicuna_v1`, `llava_llama_2`.
            read: Which state of `<SEG>` prompts the decoder: `predicting` or `at`.
            allow: Prefixes of weights that may be missing, left over or of another shape.
            revision: Commit, branch or tag of a hub model.
            compile: Makes each generated token faster after a first, slow one.

        Returns:
            The segmenter that the model's settings name, in evaluation mode.

        Raises:
            InputError: The source does not exist, a weight does not fit, or an option does not
                apply to this model.
        """
        options = {
            "quantization": quantization,
            "clip": clip,
            "sam": sam,
            "template": template,
            "read": read,
            "revision": revision,
            "compile": compile,
            "allow": tuple(allow),
        }
        if str(source or "").endswith(YAML) or str(source).partition(":")[0] in SPOKEN:
            if given := [name for name, value in options.items() if value]:
                raise InputError(f"{given[0]} does not apply to {source}; leave it out")
            return kind_module("segmenters", "spoken").Config.open(source, device, dtype)
        return segmenter_of(load(source, device=device, dtype=dtype, **options))

    @classmethod
    def build(cls, settings: ModelSettings) -> Segmenter:
        """Builds a model with fresh weights.

        Args:
            settings: Which kinds it consists of, and their settings.

        Returns:
            The segmenter that the settings name.

        Raises:
            InputError: The parts do not fit one another.
        """
        return segmenter_of(build_parts(settings))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a folder that `from_pretrained` reads, aside first, then renamed.

        Args:
            folder: Where; an older model there is replaced.
            dtype: Of the stored weights; None: as they are.

        Raises:
            InputError: The model is quantized or has adapters that are not folded, or the folder
                holds something else.
        """
        save(self, folder, dtype)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Uploads the model folder to the Hugging Face hub.

        Args:
            repo_id: `owner/name`; made where it does not exist.
            private: Whether a new repository is private.
            dtype: Of the stored weights; None: as they are.
        """
        push(self, repo_id, private=private, dtype=dtype)

    def with_references(self, kind: Kind) -> Segmenter:
        """The same model, its parts shared, with a fresh prompter for references.

        Args:
            kind: The prompter and its settings; widths of 0 are taken from the model.

        Returns:
            A new segmenter.

        Raises:
            InputError: The prompter does not fit the model.
        """
        fit = fitted(kind, self.backbone, self.decoder) or kind
        settings = replace(self.settings, references=fit)
        parts = self.backbone, self.prompter, self.decoder, fit.config.build(), self.refiner
        return segmenter_of(Parts(settings, *parts))

    def reading_examples(self) -> Segmenter:
        """Lets the backbone read references beside words from now on, and returns the model.

        Returns:
            This segmenter.

        Raises:
            InputError: The backbone cannot read references.
        """
        kind = self.settings.backbone
        fields = kind.config.__dataclass_fields__ if kind is not None else {}
        if self.backbone is None or kind is None or "examples" not in fields:
            raise InputError("examples: this model's backbone does not read references; llava does")
        kind = Kind(kind.kind, replace(kind.config, examples=True))
        self.settings = replace(self.settings, backbone=kind)
        self.backbone.config, self.origin = kind.config, None
        return self

    @property
    def capabilities(self) -> Capabilities:
        """What it can be asked."""
        raise NotImplementedError

    def forward(self, query: Query, **options: Any) -> Answer:
        """Answers one question.

        Args:
            query: The question.
            **options: Those of `batch`.

        Returns:
            The answer.
        """
        return self.batch([query], **options)[0]

    def batch(self, queries: Sequence[Query], **options: Any) -> list[Answer]:
        """Answers in the order of the queries, the same as one by one."""
        raise NotImplementedError

    def forced(
        self, queries: Sequence[Query], answers: Sequence[str] | None = None
    ) -> list[Answer]:
        """Masks of given answer texts (`<SEG>.` where they are absent); nothing is generated."""
        raise NotImplementedError

    def loss(
        self, samples: Sequence[Sample], counts: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of true answers: `loss` and its parts."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forgets what is cached of images."""


def segmenter_of(parts: Parts) -> Segmenter:
    """The segmenter that the settings of these parts name."""
    kind = parts.settings.segmenter
    config = kind.config if kind is not None else config_class("segmenters", "embedding")()
    return config.build(parts)
