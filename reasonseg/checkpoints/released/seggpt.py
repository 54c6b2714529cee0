"""SegGPT as released: `seggpt_vit_large.pth` of the original code, or a folder in transformers'
layout.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from transformers import SegGptConfig, SegGptForImageSegmentation

from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released.base import Format, LoadOptions
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.sam import decoder_from
from reasonseg.config.kinds import config_class
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.decoders.seggpt import Config, SegGpt, pixels_for
from reasonseg.errors import InputError
from reasonseg.nn.meta_init import WeightFiller, meta_init
from reasonseg.prompters.examples import Config as ExamplesConfig

EXACT = {
    "mask_token": "mask_token",
    "segment_token_x": "segment_token_input",
    "segment_token_y": "segment_token_prompt",
    "type_token_cls": "type_token_semantic",
    "type_token_ins": "type_token_instance",
    "pos_embed": "position_embeddings",
}
PARTS = (
    (r"^patch_embed\.proj\.", "model.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"model.encoder.layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"model.encoder.layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.", r"model.encoder.layers.\1.attention."),
    (r"^blocks\.(\d+)\.mlp\.fc", r"model.encoder.layers.\1.mlp.lin"),
    (r"^norm\.", "model.encoder.layernorm."),
    (r"^decoder_embed\.", "decoder.decoder_embed."),
    (r"^decoder_pred\.0\.", "decoder.decoder_pred.conv."),
    (r"^decoder_pred\.1\.", "decoder.decoder_pred.layernorm."),
    (r"^decoder_pred\.3\.", "decoder.decoder_pred.head."),
)


def recognise(place: Path) -> Path | None:
    """The weight file, or the transformers folder, of a SegGPT; None where it is something else."""
    if place.is_dir():
        config = place / "config.json"
        try:
            return (
                place
                if config.is_file()
                and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "seggpt"
                else None
            )
        except ValueError:
            return None
    if place.suffix not in (".pth", ".pt"):
        return None
    return place if any(key.endswith("type_token_ins") for key in Shards(place).of) else None


def read(place: Path, options: LoadOptions) -> Parts:
    """SegGPT, its examples read together, and `sam` as its refiner. Raises `InputError` where
    weights do not fit.
    """
    options.refuse(
        place,
        "quantization",
        "template",
        "read",
        why="is of models that read words; this one has none",
    )
    options.refuse(place, "clip", why="is of models with a vision tower; this one has none")
    config, device, dtype = Config(), options.device, options.dtype
    if place.is_dir():
        decoder = config.load(place, options.allow, dtype=dtype or "auto").to(device)
    else:
        decoder = _original(place, config, device, dtype, options.allow)
    settings = ModelSettings(
        decoder=Kind("seggpt", config),
        references=Kind("examples", ExamplesConfig()),
        about={"name": "seggpt"},
    )
    refiner = None
    if options.sam is not None:
        kind, refiner = decoder_from(options.sam, device, dtype, options.allow)
        settings = replace(settings, refiner=Kind(kind, config_class("decoders", kind)()))
    return Parts(settings, None, None, decoder, ExamplesConfig().build(), refiner).eval()


def _original(file: Path, config: Config, device, dtype, allow) -> SegGpt:
    shards = Shards(file)
    names = {key.removeprefix("model."): key for key in shards.of}
    network = network_of({name: shards.shape(key) for name, key in names.items()}, file)
    with meta_init():
        model = SegGptForImageSegmentation(network)
    filling = WeightFiller(model, device, dtype, file)
    for name, key in names.items():
        value = shards.tensor(key)
        target = renamed(name)
        wanted = filling.parameters[target].shape if target in filling.parameters else None
        if wanted is not None and "token" in name and value.numel() == wanted.numel():
            value = value.reshape(wanted)
        filling.put([target], value, name)
    filling.done(allow)
    return SegGpt(model, pixels_for(network, {}), config).to(device)


def renamed(name: str) -> str:
    """transformers' name of an original tensor."""
    if name in EXACT:
        return "model.embeddings." + EXACT[name]
    for pattern, ours in PARTS:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def network_of(shape: dict[str, tuple[int, ...]], file: Path) -> SegGptConfig:
    """The configuration that fits original tensors; the canvas is read off the relative
    positions.
    """
    try:
        width, _, patch, _ = shape["patch_embed.proj.weight"]
        depth = 1 + max(int(m[1]) for name in shape if (m := re.match(r"blocks\.(\d+)\.", name)))
        rows, head = shape["blocks.0.attn.rel_pos_h"]
        columns = shape["blocks.0.attn.rel_pos_w"][0]
        taps, pixels = shape["decoder_embed.weight"][1] // width, shape["decoder_embed.weight"][0]
        positions, mlp = shape["pos_embed"][1], shape["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError) as error:
        raise InputError(f"{file} is no SegGPT checkpoint: it lacks {error}") from None
    return SegGptConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // head,
        mlp_dim=mlp,
        patch_size=patch,
        image_size=[(rows + 1) // 2 * patch, (columns + 1) // 2 * patch],
        decoder_hidden_size=pixels // patch**2,
        pretrain_image_size=round((positions - 1) ** 0.5) * patch,
        merge_index=2,
        intermediate_hidden_state_indices=[(k + 1) * depth // taps - 1 for k in range(taps)],
    )


FORMAT = Format("SegGPT: seggpt_vit_large.pth, or transformers' folder", recognise, read)
