"""InternVL with `<SEG>`, as in Sa2VA: a picture is cut into tiles, so pictures have different
numbers of visual tokens.
"""

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
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from reasonseg.backbones.base import State, TeacherForcedOutput
from reasonseg.backbones.language import LanguageBackbone
from reasonseg.errors import InputError
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.generation import MarkerLogitsProcessor, Stepper
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.image_text import without
from reasonseg.nn.packing import IGNORED
from reasonseg.nn.pretrained import from_folder
from reasonseg.nn.shapes import Float
from reasonseg.nn.tiles import TileFeatures, grid_tiles, tiles_of
from reasonseg.structures.markers import SEG, Markers, reset_tokenizer
from reasonseg.structures.query import Query, Reference
from reasonseg.structures.reference_masks import region
from reasonseg.structures.sample import Sample

OPEN, CONTEXT, CLOSE = "<img>", "<IMG_CONTEXT>", "</img>"
# the names of Sa2VA's templates: a turn up to the answer, and what ends an answer
TEMPLATES = {
    "qwen_chat": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "phi3_chat": ("<|user|>\n{}<|end|>\n<|assistant|>\n", "<|end|>"),
}


@dataclass(frozen=True)
class Config:
    """`network` and `tokenizer` (a folder) are read only where weights start fresh.

    `template`: the conversation strings, one of Sa2VA's. `tiles`: a picture is cut into at most so
    many squares; where it is cut, the whole picture follows as one more.
    """

    template: Literal["qwen_chat", "phi3_chat"] = "qwen_chat"
    tiles: int = 12
    network: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""

    def build(self) -> InternVl:
        """A backbone with fresh weights."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        end = TEMPLATES[self.template][1]
        tokenizer.add_tokens([OPEN, CONTEXT, CLOSE, end], special_tokens=True)
        network = dict(self.network)
        text = {**network.pop("text_config", {}), "vocab_size": len(tokenizer)}
        image_id = tokenizer.convert_tokens_to_ids(CONTEXT)
        config = InternVLConfig(text_config=text, image_token_id=image_id, **network)
        return InternVl(InternVLForConditionalGeneration(config), tokenizer, self)

    def load(self, folder: Path, allow: Sequence[str] = (), **options: Any) -> InternVl:
        """A backbone from a transformers folder with its tokenizer; `allow` as in
        `weights.from_folder`.
        """
        model = from_folder(InternVLForConditionalGeneration, folder, allow, **options)
        return InternVl(model, AutoTokenizer.from_pretrained(folder), self)

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests, speaking with the embedded model's tokenizer."""
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        small["num_attention_heads"] = 2
        vision = {"model_type": "internvl_vision", **small, "image_size": 32, "patch_size": 8}
        text = {"model_type": "qwen2", **small, "num_key_value_heads": 2}
        text["max_position_embeddings"] = 512
        tokenizer = Path(__file__).parents[1] / "assets" / "tiny" / "backbone"
        network = {"vision_config": vision, "text_config": text, "tie_word_embeddings": False}
        return cls(tiles=4, network=network, tokenizer=str(tokenizer))


class InternVl(LanguageBackbone):
    """`InternVLForConditionalGeneration` with `<SEG>`."""

    keeps_prefixes = True
    even_prefixes = False

    def __init__(self, model: InternVLForConditionalGeneration, tokenizer: Any, config: Config):
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        vocabulary = tokenizer.get_vocab()
        if lacking := [name for name in (OPEN, CONTEXT, CLOSE) if name not in vocabulary]:
            raise InputError(f"the tokenizer has no {lacking[0]}, which InternVL needs")
        self.markers, self.stepper = Markers.find(tokenizer), Stepper(model)
        self.image_id = vocabulary[CONTEXT]
        vision: Any = model.config.vision_config
        self.grid = vision.image_size[0] // vision.patch_size[0]
        self.cells = int(self.grid * model.config.downsample_ratio)
        self.pixels = ImageProcessor(vision.image_size[0], aspect="squash", resample="bicubic")
        self.turn, self.end = TEMPLATES[config.template]
        self.stop = (
            "" if self.end in vocabulary else self.end
        )  # a text that ends answers, where no token is
        tokens = (self.end, tokenizer.eos_token)
        model.generation_config.eos_token_id = sorted(
            {vocabulary[t] for t in tokens if t in vocabulary}
        )
        # what no user may write, since the model takes it for its own
        self.own = tuple(n for n in tokenizer.get_added_vocab() if n not in self._markers())
        self._cut = 0  # of the latest prompt: tokens up to the end of its picture

    def _markers(self) -> tuple[str, str]:
        return self.markers.seg_text, self.markers.rej_text

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.vision_tower

    @property
    def encoders(self) -> tuple[torch.nn.Module, ...]:
        """The vision tower and the projector."""
        return self.tower, self.model.model.multi_modal_projector

    @property
    def reads_references(self) -> bool:
        """Masks of the very picture that is asked about are read ("region1")."""
        return True

    @property
    def patch_encoder(self) -> PatchEncoder:
        """The vision tower on a whole picture as one tile, before the projector."""
        width = self.model.config.vision_config.hidden_size
        return PatchEncoder(self.tower, self.patch_features, self.pixels, self.grid, width)

    def patch_features(self, images: list[np.ndarray]) -> Float[Tensor, "b t c"]:
        """What the tower makes of each patch of uint8 `[h, w, 3]` images, without the class
        token.
        """
        pixels = self.pixels.batch(images, self.device, self.tower.dtype)
        return self.tower(pixel_values=pixels).last_hidden_state[:, 1:]

    def encode(self, images: list[np.ndarray]) -> TileFeatures:
        """Encodes uint8 `[h, w, 3]` images for the language model, `[tokens, width]` each; all
        tiles in one batch.
        """
        cut = [tiles_of(image, self.pixels.size, self.config.tiles) for image in images]
        pixels = self.pixels.batch(
            [t for tiles in cut for t in tiles], self.device, self.tower.dtype
        )
        seen = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
        parts = seen.pooler_output.split([len(tiles) for tiles in cut])
        return TileFeatures([part.flatten(0, 1) for part in parts])

    def regions(self, queries: list[Query], patch_features: Callable | None = None) -> list[Tensor]:
        """Nothing: regions are cells of the picture's own features."""
        return [torch.zeros(0, self.width, device=self.device) for _ in queries]

    def check(self, query: Query) -> None:
        """As `LanguageBackbone.check`; references lie in the picture that is asked about."""
        for reference in query.references:
            if not _same(reference.image, query.image):
                raise InputError(
                    "this model reads masks of the picture that is asked about (region1, region2), "
                    "not of other pictures; train it with references, or leave them out"
                )
        super().check(query)

    def cells_of(self, reference: Reference) -> Tensor:
        """The cells of the token grid under a reference's mask, as indices in reading order."""
        mask = torch.from_numpy(np.ascontiguousarray(region(reference)))[None, None].float()
        small = F.interpolate(mask, (self.cells, self.cells), mode="nearest")
        return small.flatten().nonzero()[:, 0]

    def prompt_ids(self, query: Query) -> list[int]:
        """Ids up to where the answer begins."""
        count = len(grid_tiles(query.image.shape[:2], self.pixels.size, self.config.tiles))
        image = OPEN + CONTEXT * (count * self.cells**2) + CLOSE
        if query.references:
            parts = [
                f"region{k}<vp>{CONTEXT * len(self.cells_of(r))}</vp>"
                for k, r in enumerate(query.references, 1)
            ]
            image += f"\nThere are {len(parts)} part regions in the picture: {', '.join(parts)}.\n"
        forbidden = (*self.own, *self._markers(), "<image>")
        text = ""
        for number, (question, answer) in enumerate([*query.history, (query.text, None)]):
            said = without(question, forbidden)
            text += self.turn.replace("{}", said if number else image + said)
            if answer is not None:
                text += (
                    without(answer, self.own).replace(SEG, self.markers.seg_text) + self.end + "\n"
                )
        return self.tokenizer.encode(text)

    def length(self, query: Query) -> int:
        """Tokens of a prompt."""
        return len(self.prompt_ids(query))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer with its end."""
        said = answer.replace(SEG, self.markers.seg_text) + self.end
        return self.tokenizer.encode(said, add_special_tokens=False)

    def embed(
        self, ids: Tensor, features: Sequence[Tensor], queries: Sequence[Query]
    ) -> Float[Tensor, "b t width"]:
        """Embeddings of ids `[b, t]`, image places filled with the features and regions of each."""
        embedded = self.model.get_input_embeddings()(ids)
        seen = []
        for row, query in zip(features, queries, strict=True):
            last = row[-(self.cells**2) :]
            seen += [row, *(last[self.cells_of(r).to(row.device)] for r in query.references)]
        places = (ids == self.image_id)[..., None].expand_as(embedded)
        return embedded.masked_scatter(places, torch.cat(seen).to(embedded.dtype))

    def prefix(self, features: TileFeatures) -> Float[Tensor, "b l heads t d"]:
        """Keys and values of what every prompt about one image begins with, as `Llava.prefix`."""
        row = features.rows[0]
        before = self.turn.split("{}")[0] + OPEN
        ids = torch.tensor([[*self.tokenizer.encode(before), *[self.image_id] * len(row)]])
        embedded = self.model.get_input_embeddings()(ids.to(self.device))
        embedded[0, -len(row) :] = row.to(embedded.dtype)
        kept = self.model.model.language_model(inputs_embeds=embedded, use_cache=True)
        self._cut = ids.shape[1]
        return self.prefix_in(kept.past_key_values)

    def prefix_in(self, cache: Any) -> Tensor:
        """The same, out of what is left of the latest prompt that was read whole."""
        return self.beginning(cache, self._cut)

    def prompt_inputs(
        self,
        queries: list[Query],
        features: TileFeatures | None = None,
        regions=None,
        prefixes: Tensor | None = None,
    ) -> dict:
        """Embeddings and mask of the questions, padded on the left (after the picture, where it
        was read before: `prefixes`).
        """
        features = self.encode([q.image for q in queries]) if features is None else features
        rows = [self.prompt_ids(q) for q in queries]
        self._cut = rows[0].index(self.image_id) + len(features.rows[0])
        inputs = self.padded(rows, prefixes, lambda ids: self.embed(ids, features.rows, queries))
        if self.stop:
            inputs |= {"stop_strings": [self.stop], "tokenizer": self.tokenizer}
        return inputs

    def say(
        self, inputs: dict, processor: MarkerLogitsProcessor, limit: int
    ) -> tuple[Tensor, Tensor, Cache]:
        """As `LanguageBackbone.say`, in a loop of our own where a token ends answers."""
        if self.stop:
            return super().say(inputs, processor, limit)
        given = inputs["inputs_embeds"], inputs["attention_mask"], inputs.get("past_key_values")
        return self.stepper(*given, processor.choose, limit, self.ends)

    def compile(self) -> None:
        """As `LanguageBackbone.compile`."""
        self.stepper = Stepper(self.model, compiled=True)

    def decode(self, ids: list[int]) -> str:
        """As `LanguageBackbone.decode`, without a text that ends answers."""
        text = super().decode(ids)
        return text.removesuffix(self.stop).rstrip() if self.stop else text

    def teach(
        self,
        samples: list[Sample],
        state: State = "predicting",
        features: TileFeatures | None = None,
        regions: list | None = None,
    ) -> TeacherForcedOutput:
        """Runs true answers through the model, one padded row a sample; every picture is encoded
        once.
        """
        images = list({id(s.query.image): s.query.image for s in samples}.values())
        number = {id(image): i for i, image in enumerate(images)}
        features = self.encode(images) if features is None else features
        turns = [(self.prompt_ids(s.query), self.answer_ids(s.truth.text)) for s in samples]
        longest = max(len(prompt) + len(answer) for prompt, answer in turns)
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        labels, there = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for i, (prompt, answer) in enumerate(turns):
            whole = prompt + answer
            ids[i, : len(whole)], there[i, : len(whole)] = torch.tensor(whole), 1
            labels[i, len(prompt) - 1 : len(whole) - 1] = torch.tensor(answer)
        ids, labels, there = (value.to(self.device) for value in (ids, labels, there))
        rows = [features.rows[number[id(s.query.image)]] for s in samples]
        hidden = self.model.model.language_model(
            inputs_embeds=self.embed(ids, rows, [s.query for s in samples]), attention_mask=there
        ).last_hidden_state
        told = labels != IGNORED
        logits = self.model.get_output_embeddings()(hidden[told]).float()
        loss = F.cross_entropy(logits, labels[told], reduction="sum")
        correct = (logits.argmax(-1) == labels[told]).sum()
        row, column = (labels == self.markers.seg).nonzero(as_tuple=True)
        states = hidden[row, column + (state == "at")]
        return TeacherForcedOutput(loss, int(told.sum()), states, row.tolist(), correct)

    def save(self, folder: Path) -> None:
        """Writes a transformers folder with tokenizer and preprocessing."""
        self.model.save_pretrained(folder)
        reset_tokenizer(self.tokenizer).save_pretrained(folder)
        self.pixels.save(folder)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or (one.shape == other.shape and np.array_equal(one, other))
