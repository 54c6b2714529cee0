"""Trained VLP-SAM checkpoints (`best_model.pt`): the CLIP model and the learned encoder inside; SAM
comes beside it.

Every size is read off the tensors. Blocks that CLIP Surgery rewrote are known by their names
(`attn.qkv` instead of `attn.in_proj`), so the number of such blocks is the setting `surgery`. The
pictures enter as that code lets them: CLIP's are cropped, masks and SAM's pictures are squashed,
and SAM's are normalised at 512 pixels and enlarged to 1024 by their corners.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released.base import Format, LoadOptions
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.sam import decoder_from
from reasonseg.config.kinds import config_class
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.errors import InputError
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.meta_init import WeightFiller, meta_init
from reasonseg.prompters.vlp import Config, Vlp

FILE = "best_model.pt"
QUERIES = "transformer_decoder.supp_q_feat.weight"
HEAD = 64  # width of an attention head in every CLIP
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
PICTURE = 512  # side at which SAM's pictures are normalised
LAYERS = {
    "transformer_cross_attention_layers_0": "see_reference",
    "transformer_self_attention_layers_0": "agree",
    "transformer_cross_attention_layers": "see_query",
    "transformer_self_attention_layers": "settle",
}
PLAIN = {
    "downsample_query.0.weight": "reduce.weight",
    "merge_1.0.weight": "merge.weight",
    QUERIES: "queries",
    "clipmodel.positional_embedding": "clip.text_model.embeddings.position_embedding.weight",
    "clipmodel.token_embedding.weight": "clip.text_model.embeddings.token_embedding.weight",
    "clipmodel.logit_scale": "clip.logit_scale",
    "clipmodel.visual.class_embedding": "clip.vision_model.embeddings.class_embedding",
    "clipmodel.visual.positional_embedding": (
        "clip.vision_model.embeddings.position_embedding.weight"
    ),
    "clipmodel.visual.conv1.weight": "clip.vision_model.embeddings.patch_embedding.weight",
}
PARTS = (
    ("clipmodel.visual.transformer.resblocks.", "clip.vision_model.encoder.layers."),
    ("clipmodel.transformer.resblocks.", "clip.text_model.encoder.layers."),
    ("clipmodel.visual.ln_pre.", "clip.vision_model.pre_layrnorm."),
    ("clipmodel.visual.ln_post.", "clip.vision_model.post_layernorm."),
    ("clipmodel.ln_final.", "clip.text_model.final_layer_norm."),
)
INSIDE = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("attn.proj.", "self_attn.out_proj."),
)


def recognise(place: Path) -> Path | None:
    """The weight file of a VLP-SAM checkpoint, given itself or its folder; None where it is
    something else.
    """
    file = place / FILE if place.is_dir() else place
    if not file.is_file() or file.suffix not in (".pt", ".pth", ".safetensors"):
        return None
    return file if any(key.endswith(QUERIES) for key in Shards(file).of) else None


def read(file: Path, options: LoadOptions) -> Parts:
    """The parts in a checkpoint, with the SAM of `sam`; `clip` is a folder or hub id with CLIP's
    tokenizer.

    Raises `InputError` where no SAM is given, or tensors are missing, left over or of another
    shape.
    """
    options.refuse(
        file,
        "quantization",
        "template",
        "read",
        why="is of models that read words; this one has none",
    )
    if options.sam is None:
        raise InputError(
            f"{file} holds no SAM; give the one it was trained with as sam (--sam sam_vit_h.pth)"
        )
    device, dtype, allow = options.device, options.dtype, options.allow
    shards = Shards(file)
    names = {re.sub(r"^module\.", "", key): key for key in shards.of}
    shape = {name: shards.shape(key) for name, key in names.items()}
    kind, decoder = decoder_from(options.sam, device, dtype, allow)
    side = decoder.pixels.size
    decoder.pixels = ImageProcessor(PICTURE, aspect="squash", enlarged=side)
    config = Config(
        surgery=surgery_of(names),
        queries=shape[QUERIES][0],
        width_out=decoder.width,
        masks="squash",
    )
    tokenizer = AutoTokenizer.from_pretrained(options.clip) if options.clip is not None else None
    with meta_init():
        network = CLIPModel(clip_config(shape))
        vision: Any = network.config.vision_config
        how: dict[str, Any] = {"aspect": "crop_even", "resample": "bicubic"}
        pixels = ImageProcessor(vision.image_size, MEAN, STD, **how)
        vlp = Vlp(config, network, tokenizer, pixels)
    filling = WeightFiller(vlp, device, dtype, file)
    for name, key in names.items():
        if not name.startswith("clipmodel.visual.attn."):  # a second name of one of the blocks
            for target, value in renamed(name, shards.tensor(key)):
                filling.put([target], value, name)
    filling.done(allow)
    settings = ModelSettings(
        decoder=Kind(kind, config_class("decoders", kind)()),
        references=Kind("vlp", config),
        about={"name": "vlp-sam"},
    )
    return Parts(settings, None, None, decoder, vlp).eval()


def surgery_of(names) -> int:
    """How many of the last blocks were rewritten by CLIP Surgery."""
    return sum(
        1
        for name in names
        if re.fullmatch(r"clipmodel\.visual\.transformer\.resblocks\.\d+\.attn\.qkv\.weight", name)
    )


def clip_config(shape: dict[str, tuple[int, ...]]) -> CLIPConfig:
    """The sizes of the CLIP model inside. Raises `InputError` for one that is no ViT."""
    if (
        "clipmodel.visual.conv1.weight" not in shape
        or "clipmodel.visual.class_embedding" not in shape
    ):
        raise InputError(
            "the checkpoint's vision model is no CLIP ViT; ResNet and VGG variants are not read"
        )

    def depth(lead: str) -> int:
        return 1 + max(
            int(m[1]) for name in shape if (m := re.match(re.escape(lead) + r"(\d+)\.", name))
        )

    width, _, patch, _ = shape["clipmodel.visual.conv1.weight"]
    positions, text = (
        shape["clipmodel.visual.positional_embedding"][0],
        shape["clipmodel.positional_embedding"],
    )
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // HEAD,
        "patch_size": patch,
    }
    vision |= {
        "num_hidden_layers": depth("clipmodel.visual.transformer.resblocks."),
        "image_size": round((positions - 1) ** 0.5) * patch,
    }
    words = {
        "hidden_size": text[1],
        "intermediate_size": 4 * text[1],
        "num_attention_heads": text[1] // HEAD,
    }
    words |= {
        "num_hidden_layers": depth("clipmodel.transformer.resblocks."),
        "max_position_embeddings": text[0],
    }
    words |= {"vocab_size": shape["clipmodel.token_embedding.weight"][0]}
    joint = shape["clipmodel.text_projection"][1]
    both = {"hidden_act": "quick_gelu", "projection_dim": joint}
    return CLIPConfig(vision_config=vision | both, text_config=words | both, projection_dim=joint)


def renamed(name: str, value: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Our names of a tensor, with what belongs under each: joint projections come apart, 1x1
    convolutions become matrices.
    """
    if name in PLAIN:
        return [
            (PLAIN[name], value[:, :, 0, 0] if value.ndim == 4 and "conv1" not in name else value)
        ]
    if name in ("clipmodel.visual.proj", "clipmodel.text_projection"):
        ours = (
            "clip.visual_projection.weight" if "visual" in name else "clip.text_projection.weight"
        )
        return [(ours, value.T.contiguous())]
    if found := re.match(
        r"transformer_decoder\.(\w+)\.0\.(?:(?:self_attn|multihead_attn)\.(.*)|(norm\..*))$", name
    ):
        layer = LAYERS.get(found[1], found[1])
        return [(f"{layer}.attention.{found[2]}" if found[2] else f"{layer}.{found[3]}", value)]
    for theirs, ours in PARTS:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    if found := re.match(r"(.*)\.attn\.(?:qkv\.|in_proj_)(weight|bias)$", name):
        return [
            (f"{found[1]}.self_attn.{p}_proj.{found[2]}", part)
            for p, part in zip("qkv", value.chunk(3), strict=True)
        ]
    for theirs, ours in INSIDE:
        name = name.replace("." + theirs, "." + ours)
    return [(name, value)]


FORMAT = Format("VLP-SAM: best_model.pt, with a SAM beside it", recognise, read)
