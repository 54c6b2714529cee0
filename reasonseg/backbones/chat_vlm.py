"""Any image-text-to-text model of transformers, through its own processor and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from reasonseg.backbones.base import State, TeacherForcedOutput
from reasonseg.backbones.language import LanguageBackbone
from reasonseg.errors import InputError
from reasonseg.nn.packing import IGNORED
from reasonseg.nn.pretrained import from_folder
from reasonseg.structures.markers import Markers, add_markers, pieces, reset_tokenizer
from reasonseg.structures.query import Query
from reasonseg.structures.reference_masks import drawn
from reasonseg.structures.sample import Sample

TEMPLATE = (  # of the example only; real models bring their own
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Config:
    """`source` (folder or hub id) holds model and processor; with `network` (a config as a dict)
    weights start fresh.
    """

    source: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    system: str = ""  # a system turn, if the chat template knows one

    def build(self) -> ChatVlm:
        """The source's weights (or fresh ones), with `<SEG>` and `<REJ>` added as single
        tokens.
        """
        processor = AutoProcessor.from_pretrained(self.source)
        if self.network:
            network = dict(self.network)
            model = AutoModelForImageTextToText.from_config(
                AutoConfig.for_model(network.pop("model_type"), **network)
            )
        else:
            model = AutoModelForImageTextToText.from_pretrained(self.source)
        add_markers(processor.tokenizer, model)
        return ChatVlm(model, processor, self)

    def load(self, folder: Path, allow: Sequence[str] = (), **options) -> ChatVlm:
        """A backbone from a folder that `save` wrote; `allow` as in `weights.from_folder`."""
        model = from_folder(AutoModelForImageTextToText, folder, allow, **options)
        return ChatVlm(model, AutoProcessor.from_pretrained(folder), self)

    @classmethod
    def example(cls) -> Config:
        """A tiny LLaVA behind a processor with a chat template, for tests; written to a
        temporary folder.
        """
        import tempfile

        from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

        tokenizer = AutoTokenizer.from_pretrained(
            Path(__file__).parents[1] / "assets" / "tiny" / "backbone"
        )
        pictures = CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        processor = LlavaProcessor(
            pictures,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            chat_template=TEMPLATE,
            num_additional_image_tokens=1,
        )
        folder = tempfile.mkdtemp(prefix="chat_vlm-")
        processor.save_pretrained(folder)
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
        }
        vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
        text = {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
        }
        text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        image_id = tokenizer.convert_tokens_to_ids("<image>")
        network = {
            "model_type": "llava",
            "vision_config": vision,
            "text_config": text,
            "image_token_id": image_id,
        }
        return cls(folder, network)


class ChatVlm(LanguageBackbone):
    """A chat model with `<SEG>`. Images enter as its processor wants them."""

    def __init__(self, model: nn.Module, processor, config: Config):
        super().__init__()
        self.model, self.processor, self.config = model, processor, config
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.markers = Markers.find(self.tokenizer)
        if not getattr(processor, "chat_template", None):
            raise InputError(
                f"{config.source or 'the processor'} has no chat template; this backbone needs one"
            )

    def messages(self, query: Query) -> list[dict]:
        """The conversation as chat templates take it: the image in its first turn, references
        before the last question.
        """
        turns = (
            [{"role": "system", "content": [{"type": "text", "text": self.config.system}]}]
            if self.config.system
            else []
        )
        shown = "".join(
            f" Picture {k} marks an example{': ' + r.label if r.label else ''}."
            for k, r in enumerate(query.references, 2)
        )
        questions = [*(q for q, _ in query.history), query.text + shown]
        for i, question in enumerate(questions):
            content = [{"type": "text", "text": question}]
            if i == len(query.history):
                content = [{"type": "image"}] * len(query.references) + content
            turns.append({"role": "user", "content": [{"type": "image"}] * (i == 0) + content})
            if i < len(query.history):
                turns.append(
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": query.history[i][1]}],
                    }
                )
        return turns

    def prompt_inputs(
        self, queries: list[Query], features=None, regions=None, prefixes=None
    ) -> dict:
        """Keyword arguments of `generate`, padded on the left."""
        texts = [
            self.processor.apply_chat_template(self.messages(q), add_generation_prompt=True)
            for q in queries
        ]
        images = [[q.image, *map(drawn, q.references)] for q in queries]
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        weight = self.model.get_input_embeddings().weight
        return {
            k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype)
            for k, v in inputs.items()
        }

    def length(self, query: Query) -> int:
        """Tokens of a prompt, an image counted as one."""
        text = self.processor.apply_chat_template(self.messages(query), add_generation_prompt=True)
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer with its end, each piece between markers encoded for itself."""
        names = (self.markers.seg_text, self.markers.rej_text)
        ids = []
        for piece in pieces(answer, names):
            marker = {names[0]: self.markers.seg, names[1]: self.markers.rej}.get(piece)
            ids += (
                [marker]
                if marker is not None
                else self.tokenizer.encode(piece, add_special_tokens=False)
            )
        return [*ids, self.tokenizer.eos_token_id]

    def teach(
        self, samples: list[Sample], state: State = "predicting", features=None
    ) -> TeacherForcedOutput:
        """Runs true answers through the model, one row a sample: prompt padded on the left,
        answer on the right.
        """
        inputs = self.prompt_inputs([s.query for s in samples])
        answers = [self.answer_ids(s.truth.text) for s in samples]
        start, longest = inputs["input_ids"].shape[1], max(map(len, answers))
        rows = torch.tensor(
            [a + [IGNORED] * (longest - len(a)) for a in answers], device=self.device
        )
        there = rows != IGNORED
        tails = {
            "input_ids": rows.masked_fill(~there, self.tokenizer.pad_token_id),
            "attention_mask": there.long(),
        }
        # whatever else has one entry a token says 0 (text) for the answer
        for (
            name,
            value,
        ) in inputs.items():
            if value.shape == (len(samples), start):
                tail = tails.get(name, torch.zeros_like(rows))
                inputs[name] = torch.cat([value, tail.to(value.dtype)], 1)
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, start - 1 :]
        logits = self.model.get_output_embeddings()(hidden[:, :-1][there]).float()
        loss = F.cross_entropy(logits, rows[there], reduction="sum")
        correct = (logits.argmax(-1) == rows[there]).sum()
        row, column = (rows == self.markers.seg).nonzero(as_tuple=True)
        states = hidden[row, column + (state == "at")]
        return TeacherForcedOutput(loss, int(there.sum()), states, row.tolist(), correct)

    def save(self, folder: Path) -> None:
        """Writes a transformers folder with its processor."""
        self.model.save_pretrained(folder)
        reset_tokenizer(self.processor.tokenizer)
        self.processor.save_pretrained(folder)
