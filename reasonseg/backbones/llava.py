"""LLaVA: a vision tower, a projector and a Llama, with LLaVA's own conversation strings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, Cache, DynamicCache, LlavaConfig, LlavaForConditionalGeneration

from reasonseg.backbones.base import IGNORED, LanguageBackbone, State, TeacherForcedOutput
from reasonseg.errors import InputError
from reasonseg.nn.features import PatchEncoder
from reasonseg.nn.generation import MarkerLogitsProcessor, Stepper
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.llama_tokenizer import MODEL as PIECES
from reasonseg.nn.llama_tokenizer import LlamaPieces
from reasonseg.nn.pretrained import from_folder
from reasonseg.structures.markers import SEG, Markers, pieces, reset_tokenizer
from reasonseg.structures.query import Query
from reasonseg.structures.reference_masks import region
from reasonseg.structures.sample import Sample

IMAGE, REGION = "<image>", "<region>"
SPLICED = -200  # stands for the image where the vocabulary has no `<image>`; the embedding never sees it
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
SYSTEMS = {"plain": "", "llava_v1": HUMAN + " ", "vicuna_v1": HUMAN.replace("human", "user") + " "}
LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Config:
    """`network`, `pixels` and `tokenizer` (a folder) are read only where weights start fresh.

    `template`: LISA's `llava_v1` ("a curious human") or `llava_llama_2`, `vicuna_v1` ("a curious user"), or `plain`
    without a system text. `examples`: the model was taught to read references beside words, each as one visual token, the
    tower's features averaged under its mask; where it was not, references only reach the decoder.
    """

    template: Literal["plain", "llava_v1", "vicuna_v1", "llava_llama_2"] = "llava_v1"
    network: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    examples: bool = False

    def build(self) -> Llava:
        """A backbone with fresh weights."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        network = dict(self.network)
        text = {**network.pop("text_config", {}), "vocab_size": len(tokenizer)}
        config = LlavaConfig(text_config=text, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE), **network)
        pixels = ImageProcessor(**{"size": config.vision_config.image_size, **self.pixels})
        return Llava(LlavaForConditionalGeneration(config), tokenizer, pixels, self)

    def load(self, folder: Path, allow: Sequence[str] = (), **options) -> Llava:
        """A backbone from a transformers folder with its tokenizer; `allow` as in `weights.from_folder`."""
        model = from_folder(LlavaForConditionalGeneration, folder, allow, **options)
        released = (folder / PIECES).is_file() and not (folder / "tokenizer.json").is_file()
        tokenizer = (LlamaPieces if released else AutoTokenizer).from_pretrained(folder)
        pixels = ImageProcessor.load(folder, size=model.config.vision_config.image_size, resample="bicubic", aspect="crop")
        return Llava(model, tokenizer, pixels, self)

    @classmethod
    def example(cls) -> Config:
        """A tiny one, for tests, speaking with the embedded model's tokenizer."""
        vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
        text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
        tokenizer = Path(__file__).parents[1] / "assets" / "tiny" / "backbone"
        network = {"vision_config": vision, "text_config": text, "vision_feature_layer": -2}
        return cls("plain", network, {"aspect": "crop", "resample": "bicubic"}, str(tokenizer))


def conversation(template: str, question: str, history: tuple = ()) -> str:
    """The text of a conversation up to where the answer begins, `<image>` in its first turn."""
    questions = [q for q, _ in history] + [question]
    answers = [a for _, a in history]
    if template == "llava_llama_2":
        opening = f"[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n{IMAGE}\n"
        turns = [opening + questions[0], *(f"<s>[INST] {q}" for q in questions[1:])]
        ends = [f" [/INST] {a} </s>" for a in answers] + [" [/INST]"]
        return "".join(turn + end for turn, end in zip(turns, ends, strict=True))
    turns = [f"USER: {IMAGE}\n{questions[0]}", *(f"USER: {q}" for q in questions[1:])]
    if template == "plain":
        turns[0] = f"{IMAGE}USER: {questions[0]}"
    ends = [f" ASSISTANT: {a}</s>" for a in answers] + [" ASSISTANT:"]
    text = "".join(turn + end for turn, end in zip(turns, ends, strict=True))
    return SYSTEMS[template] + text


class Llava(LanguageBackbone):
    """`LlavaForConditionalGeneration` with `<SEG>`."""

    keeps_prefixes = True

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer, pixels: ImageProcessor, config: Config):
        super().__init__()
        self.model, self.tokenizer, self.pixels, self.config = model, tokenizer, pixels, config
        self.markers, self.stepper = Markers.find(tokenizer), Stepper(model)
        vocabulary = tokenizer.get_vocab()
        self.wrapped = "<im_start>" in vocabulary
        self.image_id = model.config.image_token_id
        vision = model.config.vision_config
        self.grid = vision.image_size // vision.patch_size
        self.patches = self.grid**2
        self.patches += model.config.vision_feature_select_strategy == "full" and vision.model_type.startswith("clip")
        names = (IMAGE, REGION, "<im_start>", "<im_end>", self.markers.seg_text, self.markers.rej_text, "<s>", "</s>")
        self.ids_of_names = {name: vocabulary[name] for name in names if name in vocabulary} | {REGION: self.image_id}
        if self.image_id != SPLICED and not 0 <= self.image_id < model.get_input_embeddings().num_embeddings:
            raise InputError(f"image_token_id {self.image_id} is not in the embedding of the language model")

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
        """Whether the language model was taught to read references beside words."""
        return self.config.examples

    @property
    def patch_encoder(self) -> PatchEncoder:
        """The vision tower, before the projector."""
        width = self.model.config.vision_config.hidden_size
        return PatchEncoder(self.tower, self.patch_features, self.pixels, self.grid, width)

    def patch_features(self, images: list[np.ndarray]) -> torch.Tensor:
        """What the tower makes of each patch of uint8 `[h, w, 3]` images: `[b, grid * grid, width of the tower]`."""
        weight = self.model.model.multi_modal_projector.linear_1.weight
        pixels = self.pixels.batch(images, weight.device, weight.dtype)
        states = self.tower(pixels, output_hidden_states=True).hidden_states[self.model.config.vision_feature_layer]
        return states[:, states.shape[1] - self.grid**2 :]  # without a class token

    def encode(self, images: list[np.ndarray]) -> torch.Tensor:
        """What the language model sees of each image: `[b, patches, width]`."""
        weight = self.model.model.multi_modal_projector.linear_1.weight
        features = self.model.get_image_features(pixel_values=self.pixels.batch(images, weight.device, weight.dtype))
        features = getattr(features, "pooler_output", features)
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    def regions(self, queries: list[Query], patch_features: Callable | None = None) -> list[torch.Tensor]:
        """What the language model sees of each query's references: `[r, width]`, none where it was not taught to.

        `patch_features` may stand for the method of that name, with a cache.
        """
        projector = self.model.model.multi_modal_projector
        marked = [r for q in queries for r in q.references if self.config.examples and q.text.strip()]
        if not marked:
            return [projector.linear_1.weight.new_zeros(0, self.width) for _ in queries]
        pictures = {id(r.image): r.image for r in marked}
        seen = dict(zip(pictures, (patch_features or self.patch_features)(list(pictures.values())), strict=True))
        masks = torch.stack([self.pixels.mask(region(r)) for r in marked])
        shares = F.adaptive_avg_pool2d(masks[:, None].float(), self.grid).flatten(1).to(self.device)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
        patches = torch.stack([seen[id(r.image)] for r in marked])
        pooled = torch.einsum("ntw,nt->nw", patches, shares.to(patches))
        counts = [len(q.references) if q.text.strip() else 0 for q in queries]
        return list(projector(pooled).split(counts))

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text with names in it, each piece between names encoded for itself; no BOS."""
        if isinstance(self.tokenizer, LlamaPieces):
            return self._released_ids(text)
        names = tuple(self.ids_of_names)
        ids = []
        for piece in pieces(text, names):
            if piece == IMAGE:
                run = [self.image_id] * self.patches
                ids += [self.ids_of_names["<im_start>"], *run, self.ids_of_names["<im_end>"]] if self.wrapped else run
            elif piece in self.ids_of_names:
                ids.append(self.ids_of_names[piece])
            else:
                ids += self.tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _released_ids(self, text: str) -> list[int]:
        runs = {IMAGE: [self.image_id] * self.patches, REGION: [self.image_id]}
        parts = re.split(
            f"({IMAGE}|{REGION})", text.replace(IMAGE, f"<im_start>{IMAGE}<im_end>") if self.wrapped else text
        )
        ids = self.tokenizer.encode(parts[0], add_special_tokens=False)
        for name, part in zip(parts[1::2], parts[2::2], strict=True):
            ids += runs[name] + self.tokenizer.encode(part, add_special_tokens=False)
        return ids

    def prompt_ids(self, query: Query) -> list[int]:
        """Ids up to where the answer begins."""
        names = (IMAGE, *self.ids_of_names)
        spoken = [name for name in names if name not in (self.markers.seg_text, self.markers.rej_text)]
        turns = [(_without(q, names), _without(a, spoken)) for q, a in query.history]
        asked = _without(query.text, names)
        for reference in query.references if self.config.examples else ():
            asked += f" Example: {_without(reference.label or '', names)} {REGION}".replace(":  ", ": ")
        text = conversation(self.config.template, asked, tuple(turns))
        return [self.tokenizer.bos_token_id, *self.text_ids(text)]

    def length(self, query: Query) -> int:
        """Tokens of a prompt."""
        return len(self.prompt_ids(query))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer with its end; `<SEG>` stands for the marker as the tokenizer spells it."""
        end = " " if self.config.template == "llava_llama_2" and isinstance(self.tokenizer, LlamaPieces) else ""
        return [*self.text_ids(answer.replace(SEG, self.markers.seg_text) + end), self.tokenizer.eos_token_id]

    def embed(self, ids: torch.Tensor, features: torch.Tensor, regions: list[torch.Tensor] = ()) -> torch.Tensor:
        """Embeddings `[b, t, width]` of ids `[b, t]`, image places filled with `features` `[b, patches, width]` and `regions`."""
        embedded = self.model.get_input_embeddings()(ids.clamp(min=0))
        places = (ids == self.image_id)[..., None].expand_as(embedded)
        if any(len(r) for r in regions):
            features = torch.cat([part for row in zip(features, regions, strict=True) for part in row])
            if len(features) != int((ids == self.image_id).sum()):
                raise InputError(
                    f"{int((ids == self.image_id).sum())} image places do not go with {len(features)} features"
                )
        return embedded.masked_scatter(places, features.to(embedded.dtype))

    def prefix(self, features: torch.Tensor) -> torch.Tensor:
        """Keys and values of what every prompt about an image begins with, up to the image's end.

        `[b, 2 * layers, heads, p, d]`, the keys of a layer before its values; `features` are `encode` of the images.
        """
        ids = torch.tensor(self._start(), device=self.device)
        kept = self.model.model.language_model(
            inputs_embeds=self.embed(ids.expand(len(features), -1), features), use_cache=True
        ).past_key_values
        return self.prefix_in(kept)

    def prefix_in(self, cache: Cache) -> torch.Tensor:
        """The same, out of what is left of prompts without padding that were read whole."""
        p = len(self._start())
        return torch.stack([part[:, :, :p] for layer in cache.layers for part in (layer.keys, layer.values)], 1)

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
        """Keyword arguments of `generate`; `features` are `encode` of the images, and like `regions` computed where absent.

        With `prefixes` (a row of `prefix` each) the rest alone is read; padding then stands behind the image.
        """
        features = self.encode([q.image for q in queries]) if features is None else features
        regions = self.regions(queries) if regions is None else regions
        rows = [self.prompt_ids(q) for q in queries]
        cut, longest = 0 if prefixes is None else prefixes.shape[-2], max(map(len, rows))
        ids = torch.tensor([row[:cut] + [0] * (longest - len(row)) + row[cut:] for row in rows], device=self.device)
        there = [[1] * cut + [0] * (longest - len(row)) + [1] * (len(row) - cut) for row in rows]
        mask = torch.tensor(there, device=self.device)
        inputs = {"inputs_embeds": self.embed(ids, features, regions), "attention_mask": mask}
        if prefixes is not None:
            cache = DynamicCache(config=self.model.config.get_text_config())
            for layer, pair in enumerate(prefixes.unflatten(1, (-1, 2)).unbind(1)):
                cache.update(pair[:, 0], pair[:, 1], layer)
            inputs["past_key_values"] = cache
        return inputs

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
        """Runs true answers through the model; questions on one image share its prefix in one packed row.

        `features` are `encode` of the images in the order in which they first appear, `regions` those of the samples. So many
        tokens of each answer as `given` says are read and not taught.
        """
        images, rows = _groups(samples)
        features = self.encode(images) if features is None else features
        marked = self.regions([s.query for s in samples]) if regions is None else regions
        regions = [torch.cat([marked[i] for i in row]) for row in rows]
        turns = [(self.prompt_ids(s.query), self.answer_ids(s.truth.text)) for s in samples]
        silent = given or [0] * len(samples)
        packs = [Pack.of([(*turns[i], silent[i]) for i in row], self.image_id, self.patches) for row in rows]
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
        owners = [rows[r][s - 1] for r, s in zip(row.tolist(), segments[found].tolist(), strict=True)]
        order = sorted(range(len(owners)), key=lambda m: owners[m])  # stable: the order within an answer stays
        sample_index = [owners[m] for m in order]
        return TeacherForcedOutput(loss, int(labelled.sum()), hidden[found][order], sample_index, correct)

    def save(self, folder: Path) -> None:
        """Writes a transformers folder with tokenizer and preprocessing."""
        self.model.save_pretrained(folder)
        reset_tokenizer(self.tokenizer).save_pretrained(folder)
        self.pixels.save(folder)


@dataclass
class Pack:
    """Several conversations that begin alike, in one row: the common prefix (segment 0), then each rest (1, 2, ...)."""

    ids: list[int]
    positions: list[int]
    labels: list[int]  # the id to predict next, IGNORED where it is not taught
    segments: list[int]  # -1 is padding

    FILL = {"ids": 0, "positions": 0, "labels": IGNORED, "segments": -1}

    @classmethod
    def of(cls, turns: list[tuple[list[int], list[int], int]], image_id: int, patches: int) -> Pack:
        """Packs (prompt ids, answer ids, how many of these are not taught) whose prompts agree up to the end of the image."""
        first = turns[0][0]
        cut = first.index(image_id) + patches
        pack = cls(first[:cut], list(range(cut)), [IGNORED] * cut, [0] * cut)
        for number, (prompt, answer, silent) in enumerate(turns, 1):
            rest = prompt[cut:] + answer
            pack.ids += rest
            pack.positions += range(cut, cut + len(rest))
            pack.labels += [IGNORED] * (len(prompt) - cut - 1 + silent) + answer[silent:] + [IGNORED]
            pack.segments += [number] * len(rest)
        return pack

    def padded(self, name: str, length: int) -> np.ndarray:
        """One of its lists at `length`."""
        values = getattr(self, name)
        return np.array(values + [self.FILL[name]] * (length - len(values)))


def packed_mask(segments: torch.Tensor) -> torch.Tensor:
    """Who may look at whom, bool `[b, 1, t, t]`, from segments `[b, t]`: back in one's own segment, and at segment 0."""
    t = segments.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    return (causal & (same | (segments == 0)[:, None, :]))[:, None]


def _groups(samples: list[Sample]) -> tuple[list[np.ndarray], list[list[int]]]:
    """Images in order of appearance, and the samples of each; a sample with history has a row of its own."""
    images: list[np.ndarray] = []
    rows: dict[object, list[int]] = {}
    for i, sample in enumerate(samples):
        key = ("history", i) if sample.query.history else id(sample.query.image)
        if key not in rows:
            images.append(sample.query.image)
        rows.setdefault(key, []).append(i)
    return images, list(rows.values())


def _without(text: str, names: Sequence[str]) -> str:
    """Words with markers and image places taken out, so that a user's cannot pose as the model's own."""
    return " ".join(p for p in pieces(text, tuple(names)) if p not in names) if any(n in text for n in names) else text
