"""Estimates the GPU memory that a model needs, from its configs alone.

Weights are counted. The peak of a forward or backward pass is found by running the real modules on
torch's meta device, where tensors have shapes and no values, and adding up the live tensors.
Attention counts as with torch's fused kernels, which store no `[t, t]` products.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SamConfig,
    SamModel,
)

from reasonseg.checkpoints.delta import FILE
from reasonseg.checkpoints.delta import read as read_changes
from reasonseg.errors import InputError
from reasonseg.nn.lora import add_lora
from reasonseg.nn.meta_init import meta_init
from reasonseg.nn.pretrained import model_path

CONTEXT = 0.6 * 2**30  # bytes used by CUDA and its libraries
WORDS, ANSWER = 128, 64  # tokens of a question, and of its answer
QUESTIONS = 3  # per image in training (as in LISA)
PER_TRAINED = 16  # bytes per trained parameter in float32: value, gradient, AdamW's two moments
MASK_COPIES = 8  # float32 maps of full size that the losses of one mask keep
PATCHES = 1024  # image tokens, in a model that takes images of any size
RANK = 8  # of LoRA, the default of finetune
USABLE = 0.97  # of a GPU's memory
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180)  # GB of the usual GPUs
# bytes of a weight in the language model's layers
STORED = {
    "bfloat16": 2.0,
    "int8": 1.0,
    "nf4": 0.5 + 4 / 64,
}
LISA = {
    "lisa-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "lisa-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


class Living(TorchDispatchMode):
    """Adds up the bytes of all tensors made inside that still exist; `peak` is the maximum."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {
            t.untyped_storage()._cdata
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in before:
                self._take(value.untyped_storage())
        return out

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known and self.known[key]() is not None:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self.known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._drop(key, size))

    def _drop(self, key: int, size: int) -> None:
        self.now -= size
        self.known.pop(key, None)


class _Fused(torch.autograd.Function):
    """The memory of attention by a fused kernel: inputs, output and one number per row."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(
            query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, torch's attention has the memory of a fused kernel on any device, and no values."""
    kept = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Fused.apply(
        query, key, value
    )
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


def peak_of(run: Callable[[], Any]) -> int:
    """Peak bytes of a computation, beyond what was there before."""
    with Living() as living, fused_attention():
        kept = run()
        del kept
    return living.peak


@dataclass
class Parts:
    """A model without values.

    - `backbone`: the transformers model with the language model; `layers` are its layers.
    - `decoder`: the transformers model of the mask decoder.
    - `patches`: number of image tokens.
    """

    name: str
    backbone: Any
    layers: nn.Module
    decoder: Any
    patches: int  # number of image tokens

    def weights(self, stored: float) -> float:
        """Bytes of all weights: bfloat16, but `stored` bytes each in the language layers."""
        inside = sum(m.weight.numel() for m in self.layers.modules() if isinstance(m, nn.Linear))
        every = sum(p.numel() for m in (self.backbone, self.decoder) for p in m.parameters())
        return 2.0 * (every - inside) + stored * inside


def parts_of(model: str) -> Parts:
    """The parts of a model; only configs are read.

    `model` is `lisa-7b`, `lisa-13b`, a folder of ours or of LISA, or a hub id. Raises `InputError`
    where it has no language model or is not known.
    """
    with meta_init():
        backbone, decoder = (
            lisa_network(LISA[model])
            if model in LISA
            else _from_folder(model_path(model, only=("*.json", "*.yaml")))
        )
    backbone, decoder = backbone.to("meta"), decoder.to("meta")  # buffers too
    backbone.tie_weights()
    vision = getattr(backbone.config, "vision_config", None)
    side, patch = (getattr(vision, name, 0) or 0 for name in ("image_size", "patch_size"))
    side, patch = (
        value[0] if isinstance(value, list | tuple) else value for value in (side, patch)
    )
    patches = (side // patch) ** 2 if side and patch else PATCHES
    return Parts(model, backbone, backbone.get_decoder().layers, decoder, patches)


def _from_folder(place: Path) -> tuple[Any, Any]:
    if (place / FILE).is_file():
        base, _ = read_changes(place)
        return _from_folder(model_path(base["source"], base.get("revision")))
    if not (place / "settings.yaml").is_file():
        return _released(place)
    if not (place / "backbone").is_dir():
        raise InputError(f"{place} takes no words; a plan is for models with a language model")
    configs = [AutoConfig.from_pretrained(place / name) for name in ("backbone", "decoder")]
    return AutoModelForImageTextToText.from_config(configs[0]), AutoModel.from_config(configs[1])


def lisa_network(sizes: dict) -> tuple[Any, Any]:
    """LISA's LLaVA and its SAM ViT-H with fresh weights.

    `sizes` are those of the language model (see `LISA`).
    """
    clip = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
    }
    clip |= {"num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768}
    huge = {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    }
    text = {"model_type": "llama", "vocab_size": 32003, "max_position_embeddings": 2048, **sizes}
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=clip, text_config=text)
    ), SamModel(SamConfig(vision_config=huge))


def _released(place: Path) -> tuple[Any, Any]:
    from reasonseg.checkpoints.released import llava, sam
    from reasonseg.checkpoints.released.layout import recognise

    layout = recognise(place)
    if layout is None or not layout.is_lisa:
        raise InputError(
            f"{place}: a plan is for {', '.join(LISA)}, folders of LISA's, and models that "
            "reasonseg saved"
        )
    tower = llava.tower_folder(layout, None)
    network = llava.LlavaForConditionalGeneration(
        llava.network_of(layout, llava.tower_config(layout, tower))
    )
    return network, sam.meta_sam(
        layout.sam_keys, lambda k: layout.shape("model.visual_model." + k)
    ).model


def encoding(parts: Parts) -> int:
    """Peak bytes of the mask decoder's image encoder on one image."""
    encoder, config = parts.decoder.vision_encoder, parts.decoder.config
    side = (
        getattr(config.vision_config, "image_size", None) or config.prompt_encoder_config.image_size
    )
    side = side[0] if isinstance(side, list | tuple) else side
    pixels = torch.empty(1, 3, side, side, device="meta", dtype=torch.bfloat16)
    with torch.no_grad():
        return peak_of(lambda: encoder.to(torch.bfloat16)(pixels))


def reading(parts: Parts) -> int:
    """Peak bytes of one question about an image and its answer, with all keys and values."""
    model, width = (
        parts.backbone.to(torch.bfloat16),
        parts.backbone.get_input_embeddings().embedding_dim,
    )
    states = torch.empty(
        1, parts.patches + WORDS + ANSWER, width, device="meta", dtype=torch.bfloat16
    )
    with torch.no_grad():
        return peak_of(
            lambda: model.get_decoder()(
                inputs_embeds=states, attention_mask=everywhere(states), use_cache=True
            )
        )


def everywhere(states: torch.Tensor) -> torch.Tensor:
    """An attention mask `[1, 1, t, t]` for states `[1, t, d]`.

    Without it transformers would read the values of a mask that has none.
    """
    return torch.empty(1, 1, states.shape[1], states.shape[1], dtype=torch.bool, device="meta")


def learning(parts: Parts, rank: int) -> tuple[int, int]:
    """Peak bytes of a training step on one image, and the number of trained parameters.

    These are the language model's. With LoRA of `rank` (0: all layers, embeddings and head), and
    layers computed again in the backward pass (`checkpointing`).
    """
    model = copy.deepcopy(parts.backbone).to(torch.bfloat16).requires_grad_(False)
    language = model.get_decoder()
    if rank:
        trained = add_lora(language.layers, rank, 16.0)
    else:
        ends = [
            m.weight.requires_grad_(True)
            for m in (model.get_input_embeddings(), model.get_output_embeddings())
        ]
        trained = list(dict.fromkeys([*language.layers.requires_grad_(True).parameters(), *ends]))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    length = parts.patches + QUESTIONS * (WORDS + ANSWER)
    states = torch.empty(
        1, length, model.get_input_embeddings().embedding_dim, device="meta", dtype=torch.bfloat16
    )

    def step() -> None:
        hidden = language(
            inputs_embeds=states.requires_grad_(True),
            attention_mask=everywhere(states),
            use_cache=False,
        ).last_hidden_state
        model.get_output_embeddings()(hidden[:, : QUESTIONS * ANSWER]).float().logsumexp(
            -1
        ).sum().backward()

    # gradients are counted in PER_TRAINED
    held = peak_of(step) - sum(p.numel() * p.element_size() for p in trained)
    return max(held, 0), sum(p.numel() for p in trained)


def plan(model: str) -> list[dict[str, Any]]:
    """GiB that answering and fine-tuning need, one row for each precision of the layers.

    Rows have the keys `precision`, `weights`, `answer`, `lora`, and `whole` (None where layers are
    quantized). The batch is one image: one question to answer, three to train.
    """
    parts = parts_of(model)
    image, question = encoding(parts), reading(parts)
    (step, adapted), (step_whole, every) = learning(parts, RANK), learning(parts, 0)
    drawing = sum(p.numel() for p in parts.decoder.mask_decoder.parameters())
    drawing += prompter_size(parts)
    # masks at the size of an image, float32, forward and backward
    masks = QUESTIONS * MASK_COPIES * 1024**2 * 4
    rows = []
    for precision, stored in STORED.items():
        weights = parts.weights(stored)
        loose = (
            0.0
            if stored == 2.0
            else 2.0
            * max(m.weight.numel() for m in parts.layers.modules() if isinstance(m, nn.Linear))
        )
        fixed = weights + loose + CONTEXT
        tuned = fixed + PER_TRAINED * (adapted + drawing) + max(image, step) + masks
        whole = (
            fixed
            - 2 * every
            + PER_TRAINED * (every + drawing)
            + max(image, step, step_whole)
            + masks
        )
        row = {
            "weights": weights,
            "answer": fixed + max(image, question),
            "lora": tuned,
            "whole": whole if stored == 2.0 else None,
        }
        rows.append(
            {
                "precision": precision,
                **{k: None if v is None else v / 2**30 for k, v in row.items()},
            }
        )
    return rows


def prompter_size(parts: Parts) -> int:
    """Number of parameters of LISA's prompter.

    It has two layers, from the width of the language model to that of the decoder.
    """
    width, tokens = (
        parts.backbone.get_input_embeddings().embedding_dim,
        parts.decoder.config.mask_decoder_config.hidden_size,
    )
    return width * (width + 1) + tokens * (width + 1)


def card(gib: float) -> str:
    """The smallest usual GPU with `gib` GiB of memory."""
    fitting = [size for size in CARDS if size * 1e9 / 2**30 * USABLE >= gib]
    return f"{fitting[0]} GB" if fitting else f"more than {CARDS[-1]} GB"
