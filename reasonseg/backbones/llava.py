"""LLaVA: a vision tower, a projector and a Llama, with LLaVA's own conversation strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Cache,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from reasonseg.backbones.base import State, TeacherForcedOutput
from reasonseg.backbones.language import LanguageBackbone
from reasonseg.errors import InputError
from reasonseg.nn import efficientnet_lite as _registered  # noqa: F401  # a tower by its name
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.generation import MarkerLogitsProcessor, Stepper
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.image_text import ImageText, without
from reasonseg.nn.llama_tokenizer import MODEL as PIECES
from reasonseg.nn.llama_tokenizer import LlamaPieces
from reasonseg.nn.packing import IGNORED, Pack, packed_mask
from reasonseg.nn.pretrained import from_folder
from reasonseg.nn.shapes import Float
from reasonseg.structures.conversations import IMAGE, REGION, conversation
from reasonseg.structures.markers import SEG, Markers, reset_tokenizer
from reasonseg.structures.query import Query
from reasonseg.structures.reference_masks import region
from reasonseg.structures.sample import Sample

# the id of the image where the vocabulary has no `<image>`; it is replaced before embedding
SPLICED = -200


@dataclass(frozen=True)
class Config:
    """`network`, `pixels` and `tokenizer` (a folder) are read only where weights start fresh.

    `template`: LISA's `llava_v1` ("a curious human") or `llava_llama_2`, `vicuna_v1` ("a curious
    user"), `plain` without a system text, or `chatml` of SmolLM2 and others. `examples`: the model
    was trained to read references beside words, each as one visual token, the tower's features
    averaged under its mask; where it was not, references only reach the decoder.
    """

    template: Literal["plain", "chatml", "llava_v1", "vicuna_v1", "llava_llama_2"] = "llava_v1"
    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    examples: bool = False

    def build(self) -> Llava:
        """A backbone with fresh weights."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        config = network_of(self.network, tokenizer)
        pixels = ImageProcessor(**{"size": config.vision_config.image_size, **self.pixels})
        return Llava(LlavaForConditionalGeneration(config), tokenizer, pixels, self)

    def load(self, folder: Path, allow: Sequence[str] = (), **options: Any) -> Llava:
        """A backbone from a transformers folder with its tokenizer; `allow` as in
        `weights.from_folder`.
        """
        model = from_folder(LlavaForConditionalGeneration, folder, allow, **options)
        released = (folder / PIECES).is_file() and not (folder / "tokenizer.json").is_file()
        tokenizer = (LlamaPieces if released else AutoTokenizer).from_pretrained(folder)
        pixels = ImageProcessor.load(
            folder, size=model.config.vision_config.image_size, resample="bicubic", aspect="crop"
        )
        return Llava(model, tokenizer, pixels, self)

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests, speaking with the embedded model's tokenizer."""
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        small["num_attention_heads"] = 2
        vision = {"model_type": "clip_vision_model", **small, "image_size": 32, "patch_size": 8}
        text = {"model_type": "llama", **small, "num_key_value_heads": 2}
        text["max_position_embeddings"] = 512
        tokenizer = Path(__file__).parents[1] / "assets" / "tiny" / "backbone"
        network = {"vision_config": vision, "text_config": text, "vision_feature_layer": -2}
        return cls("plain", network, {"aspect": "crop", "resample": "bicubic"}, str(tokenizer))


def network_of(network: dict[str, Any], tokenizer: Any) -> Any:
    """A `LlavaConfig` for a tokenizer, from a config as a dict."""
    network = dict(network)
    text = {**network.pop("text_config", {}), "vocab_size": len(tokenizer)}
    network["image_token_id"] = tokenizer.convert_tokens_to_ids(IMAGE)
    return LlavaConfig(text_config=text, **network)


class Llava(LanguageBackbone):
    """`LlavaForConditionalGeneration` with `<SEG>`."""

    keeps_prefixes = True

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: Any,
        pixels: ImageProcessor,
        config: Config,
    ):
        super().__init__()
        self.model, self.tokenizer, self.pixels, self.config = model, tokenizer, pixels, config
        self.markers, self.stepper = Markers.find(tokenizer), Stepper(model)
        self.image_id = model.config.image_token_id
        vision: Any = model.config.vision_config
        self.grid = vision.image_size // vision.patch_size
        whole = model.config.vision_feature_select_strategy == "full"
        self.patches = self.grid**2 + (whole and vision.model_type.startswith("clip"))
        self.image_text = ImageText(tokenizer, self.markers, self.image_id, self.patches)
        if (
            self.image_id != SPLICED
            and not 0 <= self.image_id < model.get_input_embeddings().num_embeddings
        ):
            raise InputError(
                f"image_token_id {self.image_id} is not in the embedding of the language model"
            )

    @property
    def tower(self) -> torch.nn.Module:
        """The vision tower."""
        return self.model.model.vision_tower

    @property
    def encoders(self) -> tuple[torch.nn.Module, ...]:
        """The vision tower and the projector."""
        return self.tower, self.model.model.multi_modal_projector

    @property
    def reads_references(self) -> bool:
        """Whether the language model was trained to read references beside words."""
        return self.config.examples

    @property
    def patch_encoder(self) -> PatchEncoder:
        """The vision tower, before the projector."""
        width = self.model.config.vision_config.hidden_size
        return PatchEncoder(self.tower, self.patch_features, self.pixels, self.grid, width)

    def patch_features(self, images: list[np.ndarray]) -> Float[Tensor, "b t c"]:
        """What the tower makes of each patch of uint8 `[h, w, 3]` images: `[b, grid * grid,
        width of the tower]`.
        """
        weight = self.model.model.multi_modal_projector.linear_1.weight
        pixels = self.pixels.batch(images, weight.device, weight.dtype)
        states = self.tower(pixels, output_hidden_states=True).hidden_states[
            self.model.config.vision_feature_layer
        ]
        return states[:, states.shape[1] - self.grid**2 :]  # without a class token

    def encode(self, images: list[np.ndarray]) -> Float[Tensor, "b p width"]:
        """Encodes uint8 `[h, w, 3]` images for the language model: `[b, patches, width]`."""
        weight = self.model.model.multi_modal_projector.linear_1.weight
        features = self.model.get_image_features(
            pixel_values=self.pixels.batch(images, weight.device, weight.dtype)
        )
        features = getattr(features, "pooler_output", features)
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    def regions(
        self, queries: list[Query], patch_features: Callable | None = None
    ) -> list[torch.Tensor]:
        """Features of each query's references for the language model: `[r, width]` a query, the
        tower's features averaged under the mask; r = 0 where the model does not read references.

        `patch_features` may replace the method of that name, with a cache.
        """
        projector = self.model.model.multi_modal_projector
        marked = [
            r for q in queries for r in q.references if self.config.examples and q.text.strip()
        ]
        if not marked:
            return [projector.linear_1.weight.new_zeros(0, self.width) for _ in queries]
        pictures = {id(r.image): r.image for r in marked}
        features = (patch_features or self.patch_features)(list(pictures.values()))
        seen = dict(zip(pictures, features, strict=True))
        masks = torch.stack([self.pixels.mask(region(r)) for r in marked])
        shares = F.adaptive_avg_pool2d(masks[:, None].float(), self.grid).flatten(1).to(self.device)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
        patches = torch.stack([seen[id(r.image)] for r in marked])
        pooled = torch.einsum("ntw,nt->nw", patches, shares.to(patches))
        counts = [len(q.references) if q.text.strip() else 0 for q in queries]
        return list(projector(pooled).split(counts))

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text with image places and markers in it, without BOS; see `ImageText`."""
        return self.image_text.ids(text)

    def prompt_ids(self, query: Query) -> list[int]:
        """Ids up to where the answer begins."""
        names = (IMAGE, *self.image_text.names)
        markers = (self.markers.seg_text, self.markers.rej_text)
        spoken = [name for name in names if name not in markers]
        turns = [(without(q, names), without(a, spoken)) for q, a in query.history]
        asked = without(query.text, names)
        for reference in query.references if self.config.examples else ():
            label = without(reference.label or "", names)
            asked += f" Example: {label} {REGION}".replace(":  ", ": ")
        text = conversation(self.config.template, asked, tuple(turns))
        return [self.tokenizer.bos_token_id, *self.text_ids(text)]

    def length(self, query: Query) -> int:
        """Tokens of a prompt."""
        return len(self.prompt_ids(query))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer with its end; `<SEG>` stands for the marker as the tokenizer spells
        it.
        """
        end = (
            " "
            if self.config.template == "llava_llama_2" and isinstance(self.tokenizer, LlamaPieces)
            else ""
        )
        return [
            *self.text_ids(answer.replace(SEG, self.markers.seg_text) + end),
            self.tokenizer.eos_token_id,
        ]

    def embed(
        self, ids: torch.Tensor, features: torch.Tensor, regions: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Embeddings `[b, t, width]` of ids `[b, t]`, image places filled with `features` `[b,
        patches, width]` and `regions`.
        """
        embedded = self.model.get_input_embeddings()(ids.clamp(min=0))
        places = (ids == self.image_id)[..., None].expand_as(embedded)
        if any(len(r) for r in regions):
            features = torch.cat(
                [part for row in zip(features, regions, strict=True) for part in row]
            )
            if len(features) != int((ids == self.image_id).sum()):
                raise InputError(
                    f"{int((ids == self.image_id).sum())} image places do not go with "
                    f"{len(features)} features"
                )
        return embedded.masked_scatter(places, features.to(embedded.dtype))

    def prefix(self, features: Float[Tensor, "b p width"]) -> Float[Tensor, "b l heads t d"]:
        """Keys and values of what every prompt about an image begins with, up to the image's end.

        `[b, 2 * layers, heads, p, d]`, the keys of a layer before its values; `features` are
        `encode` of the images.
        """
        ids = torch.tensor(self._start(), device=self.device)
        kept = self.model.model.language_model(
            inputs_embeds=self.embed(ids.expand(len(features), -1), features), use_cache=True
        ).past_key_values
        return self.prefix_in(kept)

    def prefix_in(self, cache: Any) -> torch.Tensor:
        """The same, out of what is left of prompts without padding that were read whole."""
        return self.beginning(cache, len(self._start()))

    def _start(self) -> list[int]:
        ids = self.prompt_ids(Query(np.zeros((1, 1, 3), np.uint8), "?"))
        return ids[: ids.index(self.image_id) + self.patches]

    def prompt_inputs(
        self,
        queries: list[Query],
        features: torch.Tensor | None = None,
        regions=None,
        prefixes: torch.Tensor | None = None,
    ) -> dict:
        """Keyword arguments of `generate`; `features` are `encode` of the images, and like
        `regions` computed where absent.

        With `prefixes` (a row of `prefix` each) the rest alone is read; padding then comes after
        the image.
        """
        features = self.encode([q.image for q in queries]) if features is None else features
        regions = self.regions(queries) if regions is None else regions
        rows = [self.prompt_ids(q) for q in queries]
        return self.padded(rows, prefixes, lambda ids: self.embed(ids, features, regions))

    def say(
        self, inputs: dict, processor: MarkerLogitsProcessor, limit: int
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """As `LanguageBackbone.say`, in a loop of our own."""
        given = inputs["inputs_embeds"], inputs["attention_mask"], inputs.get("past_key_values")
        return self.stepper(*given, processor.choose, limit, self.ends)

    def compile(self) -> None:
        """As `LanguageBackbone.compile`."""
        self.stepper = Stepper(self.model, compiled=True)

    def teach(
        self,
        samples: list[Sample],
        state: State = "predicting",
        features: torch.Tensor | None = None,
        regions: list | None = None,
        given: Sequence[int] | None = None,
    ) -> TeacherForcedOutput:
        """Runs true answers through the model; questions on one image share its prefix in one
        packed row.

        `features` are `encode` of the images in the order in which they first appear, `regions`
        those of the samples. The first `given[i]` tokens of answer i are read, but not counted in
        the loss.
        """
        images, rows = _groups(samples)
        features = self.encode(images) if features is None else features
        marked = self.regions([s.query for s in samples]) if regions is None else regions
        regions = [torch.cat([marked[i] for i in row]) for row in rows]
        turns = [(self.prompt_ids(s.query), self.answer_ids(s.truth.text)) for s in samples]
        silent = given or [0] * len(samples)
        packs = [
            Pack.of([(*turns[i], silent[i]) for i in row], self.image_id, self.patches)
            for row in rows
        ]
        length = max(len(p.ids) for p in packs)
        ids, positions, labels, segments = (
            torch.tensor(np.stack([p.padded(name, length) for p in packs]), device=self.device)
            for name in ("ids", "positions", "labels", "segments")
        )
        hidden = self.model.model.language_model(
            inputs_embeds=self.embed(ids, features, regions),
            attention_mask=packed_mask(segments),
            position_ids=positions,
        ).last_hidden_state
        labelled = labels != IGNORED
        logits = self.model.get_output_embeddings()(hidden[labelled]).float()
        loss = F.cross_entropy(logits, labels[labelled], reduction="sum")
        correct = (logits.argmax(-1) == labels[labelled]).sum()
        found = labels == self.markers.seg  # labels are shifted: the state here predicts <SEG>
        if state == "at":
            found = found.roll(1, 1)
        row, _ = found.nonzero(as_tuple=True)
        owners = [
            rows[r][s - 1] for r, s in zip(row.tolist(), segments[found].tolist(), strict=True)
        ]
        # stable: the order within an answer stays
        order = sorted(range(len(owners)), key=lambda m: owners[m])
        sample_index = [owners[m] for m in order]
        return TeacherForcedOutput(
            loss, int(labelled.sum()), hidden[found][order], sample_index, correct
        )

    def save(self, folder: Path) -> None:
        """Writes a transformers folder with tokenizer and preprocessing."""
        self.model.save_pretrained(folder)
        reset_tokenizer(self.tokenizer).save_pretrained(folder)
        self.pixels.save(folder)


def _groups(samples: list[Sample]) -> tuple[list[np.ndarray], list[list[int]]]:
    """Images in order of appearance, and the samples of each; a sample with history has a row of
    its own.
    """
    images: list[np.ndarray] = []
    rows: dict[object, list[int]] = {}
    for i, sample in enumerate(samples):
        key = ("history", i) if sample.query.history else id(sample.query.image)
        if key not in rows:
            images.append(sample.query.image)
        rows.setdefault(key, []).append(i)
    return images, list(rows.values())
