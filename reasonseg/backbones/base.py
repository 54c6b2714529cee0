"""What a backbone is, what backbones share, and what they return.

A backbone is a vision-language model that has learned the marker tokens: it generates an answer and
keeps the state that predicted each token, or runs a true answer (teacher forcing) and returns its
cross entropy and the states of its `<SEG>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.shapes import Float, Int
from reasonseg.structures.markers import Markers
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

# which state of `<SEG>` is read: the one that predicts it (LISA's rule), or the one at it
State = Literal["predicting", "at"]


@dataclass
class GeneratedOutput:
    """One generated answer. `states[t]` `[width]` is the state that predicted `ids[t]`,
    `probabilities[t]` its probability.

    Where the states `at` the tokens are wanted, `states` holds one more: the state after the last
    token.
    """

    text: str
    ids: list[int]
    states: Float[Tensor, "t width"]
    probabilities: list[float]


@dataclass
class TeacherForcedOutput:
    """True answers run through a backbone: summed cross entropy, its number of tokens, and the
    states of every `<SEG>`.

    `states` `[m, width]` are in the order of the samples; `sample_index[m]` says which sample each
    belongs to. `correct` counts the tokens that were predicted right.
    """

    cross_entropy: Float[Tensor, ""]
    tokens: int
    states: Float[Tensor, "m width"]
    sample_index: list[int]
    correct: Int[Tensor, ""]


@runtime_checkable
class Backbone(Protocol):
    """A vision-language model that says `<SEG>`. `LanguageBackbone` implements what kinds share.

    Attributes:
        config: Its settings.
        model: The transformers model inside.
        tokenizer: Its tokenizer, which knows the markers.
        markers: Ids of `<SEG>` and `<REJ>`.
        keeps_prefixes: Whether keys and values of an image can be kept for later questions.
        even_prefixes: Whether those of all images are equally long, so that they make a batch.
    """

    config: Any
    model: Any
    tokenizer: Any
    markers: Markers
    keeps_prefixes: bool
    even_prefixes: bool

    @property
    def reads_references(self) -> bool:
        """Whether the language model reads references beside words."""
        ...

    @property
    def width(self) -> int:
        """Width of the states."""
        ...

    @property
    def layers(self) -> nn.ModuleList:
        """The language model's layers, which LoRA and quantization work on."""
        ...

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The modules that `encode` runs; none where a kind cannot encode an image apart from
        words.
        """
        ...

    @property
    def pixels(self) -> ImageProcessor:
        """How images enter, where there are encoders."""
        ...

    @property
    def patch_encoder(self) -> PatchEncoder | None:
        """The vision tower as others may use it; None where it cannot be run alone."""
        ...

    def encode(self, images: list[np.ndarray]) -> Any:
        """Encodes images for the language model, where there are encoders.

        Args:
            images: uint8 RGB `[h, w, 3]`, of any sizes.

        Returns:
            What the language model reads of each: `[b, patches, width]`.
        """
        ...

    def check(self, query: Query) -> None:
        """Raises `InputError` for a question that is longer than the model reads."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of a true answer with its end."""
        ...

    def regions(self, queries: list[Query], patch_features: Callable | None = None) -> Any:
        """Features of each query's references for the language model, `[r, width]` a query; only
        where it `reads_references`.

        Args:
            queries: Questions, with references or without.
            patch_features: Encodes images to patch features; None: `patch_encoder.encode`.

        Returns:
            One tensor `[r, width]` for each query; r is its number of references.
        """
        ...

    def prefix(self, features: Any) -> Tensor:
        """Keys and values of what every prompt about an image begins with, `[b, 2 * layers,
        heads, t, d]`; only where it `keeps_prefixes`.
        """
        ...

    def prefix_in(self, cache: Any) -> Tensor:
        """The same as `prefix`, cut out of the keys and values of whole prompts."""
        ...

    def generate(
        self,
        queries: list[Query],
        features: Any = None,
        regions: list | None = None,
        prefixes: Tensor | None = None,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        force_seg: bool,
        absent_threshold: float,
        state: State = "predicting",
        on_cache: Callable[[Any], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[GeneratedOutput]:
        """Generates answers to several questions as one batch; the same as one by one.

        Args:
            queries: The questions; all have words.
            features: `encode` of their images, a row a question; None: computed here.
            regions: `regions` of the questions; None: computed here.
            prefixes: `prefix` of their images, a row a question; None: whole prompts are read.
            max_new_tokens: At most so many tokens are generated, 1 or more.
            temperature: 0 takes the likeliest token; above 0 samples.
            seed: Of the sampling; the same for a question alone and in a batch.
            force_seg: An answer without `<SEG>` gets one before it ends.
            absent_threshold: `<REJ>` is taken where it has at least this share (0..1) of the
                probability of `<REJ>` and `<SEG>`.
            state: Which state of `<SEG>` is wanted; `at` also feeds the last token.
            on_cache: Is given the keys and values at the end.
            on_text: Is called with (number of the question, text so far) whenever that grows.

        Returns:
            One output for each question.
        """
        ...

    def teach(
        self, samples: list[Sample], state: State = "predicting", features: Any = None
    ) -> TeacherForcedOutput:
        """Runs true answers through the model (teacher forcing).

        Args:
            samples: Questions with their true answers; all have words.
            state: Which state of each `<SEG>` is returned.
            features: `encode` of the distinct images, in the order in which they first appear.

        Returns:
            Cross entropy summed over answer tokens, and the states of every `<SEG>`.
        """
        ...

    def compile(self) -> None:
        """Makes the step of each token faster after a first, slow one. Raises `InputError` where
        a kind cannot.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes a transformers folder with tokenizer or processor."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...
