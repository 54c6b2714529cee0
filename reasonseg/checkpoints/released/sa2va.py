"""Sa2VA as released: InternVL with a Qwen2 language model, `[SEG]`, and SAM 2. Its own code is
never run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Sam2Model,
)

from reasonseg.backbones.internvl import CONTEXT, TEMPLATES, InternVl
from reasonseg.backbones.internvl import Config as InternVlConfig
from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released import sam, sam2
from reasonseg.checkpoints.released.base import Format, LoadOptions
from reasonseg.checkpoints.released.files import Shards
from reasonseg.config.kinds import config_class
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind, parse
from reasonseg.decoders.sam2 import Config as Sam2Config
from reasonseg.decoders.sam2 import Sam2Decoder
from reasonseg.errors import InputError
from reasonseg.nn import quantization as quant
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.meta_init import WeightFiller, meta_init
from reasonseg.prompters.seg_token import Config as SegTokenConfig

KIND = "sa2va_chat"
SAM2 = "grounding_encoder.sam2_model."
# the released code rounds ImageNet's numbers to bfloat16
MEAN, STD = (0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)
LANGUAGES = ("qwen2",)
RENAMED = (  # start of a released name -> of transformers'
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
    ("mlp1.1.", "model.multi_modal_projector.linear_1."),
    ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding",
     "model.vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.",
     "model.vision_tower.embeddings.patch_embeddings.projection."),
    ("vision_model.encoder.layers.", "model.vision_tower.encoder.layer."),
)  # fmt: skip
WITHIN = (  # within a layer of the vision tower
    (".attn.proj.", ".attention.projection_layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)


@dataclass(frozen=True)
class Folder:
    """A folder of Sa2VA: its config, and its tensors."""

    place: Path
    config: dict[str, Any]
    shards: Shards

    @property
    def sam2_names(self) -> list[str]:
        """The names of its SAM 2, without what stands before them."""
        return [key.removeprefix(SAM2) for key in self.shards.of if key.startswith(SAM2)]

    def field(self, *path: str) -> Any:
        """A field of config.json. Raises `InputError` where it is missing."""
        value: Any = self.config
        for name in path:
            if not isinstance(value, dict) or name not in value:
                raise InputError(f"{self.place / 'config.json'}: {'.'.join(path)} is missing")
            value = value[name]
        return value


def recognise(place: Path) -> Folder | None:
    """A folder whose config.json is Sa2VA's; None for all else."""
    file = place / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(config, dict) or config.get("model_type") != KIND:
        return None
    return Folder(place, config, Shards(place))


def read(folder: Folder, options: LoadOptions) -> Parts:
    """The parts of a folder. Raises `InputError` naming file, expected and found wherever
    something does not fit.
    """
    options.refuse(folder.place, "clip", "template", "read", why="is not for Sa2VA")
    device, dtype = options.device, options.dtype
    if not folder.sam2_names and options.sam is None:
        raise InputError(
            f"{folder.place} has no tensors {SAM2}*, the SAM 2 that draws; fetch all its shards, "
            "or name a mask decoder as sam (--sam)"
        )
    backbone = backbone_of(folder)
    if options.sam:
        kind, decoder = sam.decoder_from(options.sam, device, dtype, options.allow)
        drawn = Kind(kind, config_class("decoders", kind)())
    else:
        decoder = decoder_of(folder)
        drawn = Kind("sam2", decoder.config)
    widths = {"width_in": backbone.width, "width_out": decoder.width}
    config = parse(SegTokenConfig, {"at": "at", **widths}, "prompter")
    with meta_init():
        prompter = config.build()
    settings = ModelSettings(
        backbone=Kind("internvl", backbone.config),
        prompter=Kind("seg_token", config),
        decoder=drawn,
        score="predicted",
        max_new_tokens=512,
        about={"name": "sa2va"},
    )
    parts = Parts(settings, backbone, prompter, decoder)
    if options.quantization:
        quant.prepare(backbone.layers, options.quantization, dtype or torch.float32)
    filling = WeightFiller(parts, device, dtype, folder.place)
    if options.sam:
        filling.filled |= {name for name in filling.parameters if name.startswith("decoder.")}
    buffers = dict(parts.named_buffers())
    for name, value, key in tensors(folder, with_sam=not options.sam):
        if name in buffers:  # SAM 2's encoding of places
            buffers[name].copy_(value)
        else:
            filling.put([name], value, key)
    filling.done(options.allow)
    return parts.eval()


def backbone_of(folder: Folder) -> InternVl:
    """The hollow backbone. Raises `InputError` for a language model that is not proven."""
    language = folder.field("llm_config", "model_type")
    if language not in LANGUAGES:
        raise InputError(
            f"{folder.place / 'config.json'}: its language model is {language!r}; of Sa2VA only "
            f"those with {', '.join(LANGUAGES)} are proven to give the released masks"
        )
    template = str(folder.field("template")).replace("-", "_")
    if template not in TEMPLATES:
        raise InputError(
            f"{folder.place / 'config.json'}: template {template!r} is not one of "
            f"{', '.join(TEMPLATES)}"
        )
    tokenizer = Qwen2Tokenizer.from_pretrained(folder.place)
    rows = folder.shards.shape("language_model.model.embed_tokens.weight")[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"{folder.place}: the tokenizer has {len(tokenizer)} tokens, but "
            f"language_model.model.embed_tokens.weight has {rows} rows"
        )
    for name in ("[SEG]", CONTEXT):
        if name not in tokenizer.get_vocab():
            raise InputError(f"{folder.place}: the tokenizer has no {name}; fetch its files again")
    known = Qwen2Config().to_dict()
    text = {k: v for k, v in folder.config["llm_config"].items() if k in known or k == "rope_theta"}
    text |= {"vocab_size": rows, "model_type": "qwen2"}
    text.pop("dtype", None)
    config = InternVLConfig(
        vision_config=vision_of(folder),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(CONTEXT),
        downsample_ratio=folder.field("downsample_ratio"),
        vision_feature_layer=folder.config.get("select_layer", -1),
        tie_word_embeddings=False,
    )
    with meta_init():
        model = InternVLForConditionalGeneration(config)
    # 12 tiles and a thumbnail are fixed in the released code, whatever config.json says
    return InternVl(model, tokenizer, parse(InternVlConfig, {"template": template}, "backbone"))


def vision_of(folder: Folder) -> dict[str, Any]:
    """transformers' vision config; sizes that config.json leaves out are read off the tensors."""
    given = folder.field("vision_config")
    patch = folder.shards.shape("vision_model.embeddings.patch_embedding.weight")[-1]
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "hidden_act", "norm_type", "layer_norm_eps")  # fmt: skip
    vision = {name: given[name] for name in same if name in given}
    side = given.get("image_size", folder.config.get("force_image_size"))
    vision |= {
        "model_type": "internvl_vision",
        "image_size": [side, side],
        "patch_size": [patch, patch],
        "attention_bias": given.get("qkv_bias", True),
        "use_qk_norm": given.get("qk_normalization", False),
    }
    return {
        k: v for k, v in vision.items() if k in (*InternVLVisionConfig().to_dict(), "model_type")
    }


def decoder_of(folder: Folder) -> Sam2Decoder:
    """The hollow SAM 2, drawing as the released code does."""
    size = sam2.size_in(folder.config.get("sam2_size"), str(folder.place / "config.json"))
    try:
        network = sam2.config_of(
            folder.sam2_names, lambda name: folder.shards.shape(SAM2 + name), size
        )
    except InputError as error:
        raise InputError(f"{folder.place}: {error}") from None
    with meta_init():
        model: Any = Sam2Model(network)
    side = model.config.prompt_encoder_config.image_size
    pixels = ImageProcessor(side, MEAN, STD, aspect="squash", resample="bicubic")
    return Sam2Decoder(model, pixels, parse(Sam2Config, {"best": True, "blanks": 2}, "decoder"))


def tensors(folder: Folder, with_sam: bool) -> Iterator[tuple[str, torch.Tensor, str]]:
    """(our name, value, released name) of every tensor, shard by shard."""
    for key, value in folder.shards.items():
        if key.startswith(SAM2):
            continue
        if key.startswith("text_hidden_fcs."):
            yield f"prompter.mlp.{key.removeprefix('text_hidden_fcs.')}", value, key
            continue
        for name, part in renamed(key, value):
            yield f"backbone.model.{name}", part, key
    if with_sam:
        for name, value, key in sam2.items(
            folder.sam2_names, lambda name: folder.shards.tensor(SAM2 + name)
        ):
            yield f"decoder.model.{name}", value, SAM2 + key


def renamed(key: str, value: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """transformers' names of a tensor of InternVL; queries, keys and values are three there."""
    for start, new in RENAMED:
        if key.startswith(start):
            name = new + key.removeprefix(start)
            break
    else:
        return [(key, value)]
    if not key.startswith("vision_model.encoder."):
        return [(name, value)]
    if ".attn.qkv." in name:
        place, last = name.split(".attn.qkv.")
        return [
            (f"{place}.attention.{part}_proj.{last}", rows)
            for part, rows in zip("qkv", value.chunk(3), strict=True)
        ]
    for old, new in WITHIN:
        name = name.replace(old, new)
    return [(name, value)]


FORMAT = Format("Sa2VA with InternVL and Qwen2: config.json and weights", recognise, read)
