"""Original segment-anything weights (`sam_vit_b/l/h.pth`, or the SAM inside LISA) as transformers'
SamModel.

Every size is read off the tensors: heads from the width of the relative-position tables, global
blocks from their length. The one thing tensors do not tell is the number of heads of the mask
decoder; segment-anything builds all its models with 8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import SamConfig, SamModel

from reasonseg.checkpoints.released.files import Shards
from reasonseg.config.kinds import config_class, kinds
from reasonseg.decoders.base import Decoder
from reasonseg.decoders.sam import SamDecoder
from reasonseg.errors import InputError
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.meta_init import WeightFiller, meta_init
from reasonseg.nn.pretrained import download

DECODER_HEADS = 8
# SAM's, of 0..1
MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
RENAMED = (  # pattern of an original name -> ours; the rest of a name stays
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm([1-4])\.", r"\1.layer_norm\2."),
    (
        r"^mask_decoder\.transformer\.norm_final_attn\.",
        "mask_decoder.transformer.layer_norm_final_attn.",
    ),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
)
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
TIED = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
HEAD = r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\."


def renamed(name: str, head_layers: int) -> tuple[str, ...]:
    """transformers' names of an original tensor (two where it is tied); the IoU head has
    `head_layers` layers.
    """
    if name == GAUSSIAN:
        return TIED
    if found := re.match(HEAD, name):
        place, number = found[1], int(found[2])
        # a hyper-network always has three
        last = 2 if "hypernetworks" in place else head_layers - 1
        middle = (
            "proj_in" if number == 0 else "proj_out" if number == last else f"layers.{number - 1}"
        )
        return (f"{place}.{middle}.{name[found.end() :]}",)
    for pattern, new in RENAMED:
        if re.match(pattern, name):
            return (re.sub(pattern, new, name),)
    return (name,)


def head_layers(names: list[str]) -> int:
    """How many layers the IoU head has."""
    return _count(names, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.")


def config_of(names: list[str], shape: Callable[[str], tuple[int, ...]]) -> SamConfig:
    """The configuration that fits original tensors of these `names`; `shape(name)` gives a tensor's
    shape.

    Raises `InputError` where a tensor that says a size is missing or two contradict each other.
    """

    def of(name: str) -> tuple[int, ...]:
        if name not in names:
            raise InputError(f"this is no segment-anything checkpoint: it lacks {name}")
        return shape(name)

    width, _, patch, _ = of("image_encoder.patch_embed.proj.weight")
    _, grid, *_ = of("image_encoder.pos_embed")
    depth = _count(names, r"image_encoder\.blocks\.(\d+)\.")
    tables = [of(f"image_encoder.blocks.{i}.attn.rel_pos_h") for i in range(depth)]
    if width % tables[0][1]:
        raise InputError(
            f"image_encoder.blocks.0.attn.rel_pos_h is {tables[0][1]} wide, which does not divide "
            f"the width {width}"
        )
    everywhere = 2 * grid - 1  # the table of a block with global attention
    windows = {(length + 1) // 2 for length, _ in tables if length != everywhere}
    if len(windows) > 1:
        raise InputError(
            f"image_encoder blocks have windows of {sorted(windows)}; segment-anything has one size"
        )
    out = of("image_encoder.neck.0.weight")[0]
    vision = {
        "hidden_size": width,
        "output_channels": out,
        "num_hidden_layers": depth,
        "num_attention_heads": width // tables[0][1],
        "image_size": grid * patch,
        "patch_size": patch,
        "mlp_dim": of("image_encoder.blocks.0.mlp.lin1.weight")[0],
        "use_rel_pos": True,
        "window_size": windows.pop() if windows else 0,
        "global_attn_indexes": [i for i, (length, _) in enumerate(tables) if length == everywhere],
        "num_pos_feats": of(GAUSSIAN)[1],
    }
    prompt = {"hidden_size": out, "image_size": grid * patch, "patch_size": patch}
    prompt |= {"mask_input_channels": of("prompt_encoder.mask_downscaling.0.weight")[0] * 4}
    inner = of("mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight")[0]
    masks = {
        "hidden_size": out,
        "mlp_dim": of("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
        "num_hidden_layers": _count(names, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": out // inner,
        "num_multimask_outputs": of("mask_decoder.mask_tokens.weight")[0] - 1,
        "iou_head_depth": head_layers(names),
        "iou_head_hidden_dim": of("mask_decoder.iou_prediction_head.layers.0.weight")[0],
        "layer_norm_eps": 1e-5,  # of the two-way blocks; transformers' default is 1e-6
    }
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=masks)


def _count(names: list[str], pattern: str) -> int:
    found = [int(m[1]) for name in names if (m := re.match(pattern, name))]
    if not found:
        raise InputError(
            f"this is no segment-anything checkpoint: no tensor is named like {pattern}"
        )
    return max(found) + 1


def meta_sam(names: list[str], shape) -> SamDecoder:
    """A decoder without values that fits original tensors; call it inside `meta_init()`."""
    config = config_of(names, shape)
    vision: Any = config.vision_config
    return SamDecoder(SamModel(config), ImageProcessor(vision.image_size, MEAN, STD))


def decoder_from(
    source: str, device: torch.device, dtype: torch.dtype | None, allow: tuple[str, ...] = ()
) -> tuple[str, Any]:
    """(kind, decoder) from an original .pth, or a transformers folder or hub id of SAM, SAM-HQ
    or SAM 2.
    """
    path = Path(source)
    if path.is_file():
        shards = Shards(path)
        names = list(shards.of)
        with meta_init():
            decoder = meta_sam(names, shards.shape)
        filling, heads = WeightFiller(decoder, device, dtype, path), head_layers(names)
        for name, value in shards.items():
            filling.put([f"model.{ours}" for ours in renamed(name, heads)], value, name)
        filling.done(allow)
        return "sam", decoder
    return hub_decoder(path, source, device, dtype, allow)


def hub_decoder(path: Path, source: str, device, dtype, allow) -> tuple[str, Decoder]:
    """(kind, decoder) from a folder in transformers' layout; each decoder's `Config` says which
    model types it reads.
    """
    from transformers import AutoConfig

    folder = (
        path
        if path.is_dir()
        else download(source, None, "give a .pth file or a transformers folder")
    )
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no config.json; a mask decoder is a .pth file or a transformers folder"
        )
    type_ = AutoConfig.from_pretrained(folder).model_type
    configs = {kind: config_class("decoders", kind) for kind in kinds("decoders")}
    readers = {kind: config for kind, config in configs.items() if "tokens" in config.takes}
    for kind, config in readers.items():
        if type_ in config.model_types:
            return kind, config().load(folder, allow, dtype=dtype or "auto").to(device)
    known = ", ".join(name for config in readers.values() for name in config.model_types)
    raise InputError(f"{folder} holds a {type_!r} model; a mask decoder is one of {known}")
