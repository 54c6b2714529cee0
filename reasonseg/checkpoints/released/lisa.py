"""LISA checkpoints, released or from training, and LLaVA v1 with a SAM beside it as the start of
a new training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released import llava, sam
from reasonseg.checkpoints.released.base import Format, LoadOptions
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.layout import Layout, recognise
from reasonseg.config.kinds import config_class
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind, parse
from reasonseg.errors import InputError
from reasonseg.nn import quantization as quant
from reasonseg.nn.meta_init import WeightFiller, meta_init
from reasonseg.prompters.seg_token import Config as SegTokenConfig
from reasonseg.structures.markers import REJ, SEG, Markers

INSIDE = "model.visual_model."  # LISA's name for its SAM


def read(layout: Layout, options: LoadOptions) -> Parts:
    """The parts in a layout. Raises `InputError` naming file, expected and found wherever parts
    do not fit.
    """
    device, dtype, allow = options.device, options.dtype, options.allow
    if not layout.is_lisa and options.sam is None:
        raise InputError(
            f"{layout.folder} is LLaVA, which draws no masks; give a mask decoder to start a "
            "training from as sam (--sam)"
        )
    tokenizer = llava.tokenizer_of(layout)
    if not layout.is_lisa:
        tokenizer.add_tokens([SEG, REJ])
    Markers.find(tokenizer)
    tower = llava.tower_folder(layout, options.clip)
    vision = llava.tower_config(layout, tower)
    with meta_init():
        backbone = llava.backbone_of(layout, tokenizer, vision, tower, options.template)
    if options.sam:
        kind, decoder = sam.decoder_from(options.sam, device, dtype, allow)
    else:
        kind, shape = "sam", lambda key: layout.shape(INSIDE + key)
        with meta_init():
            decoder = sam.meta_sam(layout.sam_keys, shape)
    at = {"at": options.read} if options.read else {}
    widths = {"width_in": backbone.width, "width_out": decoder.width}
    config = parse(SegTokenConfig, {**at, **widths}, "prompter")
    with meta_init():
        prompter = config.build()
    settings = ModelSettings(
        backbone=Kind("llava", backbone.config),
        prompter=Kind("seg_token", config),
        decoder=Kind(kind, config_class("decoders", kind)()),
        max_new_tokens=512,
        new_markers=not layout.is_lisa,
        about={"name": "lisa" if layout.is_lisa else "llava"},
    )
    parts = Parts(settings, backbone, prompter, decoder)
    if options.quantization:
        quant.prepare(backbone.layers, options.quantization, dtype or torch.float32)
    fill(parts, layout, tower, device, dtype, allow, with_sam=not options.sam)
    rows = backbone.model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        with seeded_init():
            backbone.model.resize_token_embeddings(len(tokenizer))
    return parts.eval()


@contextmanager
def seeded_init() -> Iterator[None]:
    """What starts at random inside starts the same at every load, so that a killed training
    finds its model again.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def fill(parts: Parts, layout: Layout, tower: Path, device, dtype, allow, with_sam: bool) -> None:
    """Fills parts without values, shard by shard."""
    filling = WeightFiller(parts, device, dtype, layout.folder)
    if not with_sam:  # has its values already
        filling.filled |= {name for name in filling.parameters if name.startswith("decoder.")}
    if not layout.is_lisa:
        filling.filled |= {name for name in filling.parameters if name.startswith("prompter.")}
        with seeded_init():
            _, prompter = parts.language()
            fresh = prompter.config.build().to(device, dtype or torch.float32)
        prompter.load_state_dict(fresh.state_dict(), assign=True)
    heads = sam.head_layers(layout.sam_keys) if with_sam else 0
    for name, value in layout.items():
        if name.startswith(INSIDE):
            if with_sam:
                ours = sam.renamed(name.removeprefix(INSIDE), heads)
                filling.put([f"decoder.model.{o}" for o in ours], value, name)
        elif name.startswith("model.text_hidden_fcs."):
            filling.put([name.replace("model.text_hidden_fcs.0.", "prompter.mlp.")], value, name)
        else:
            filling.put(["backbone." + llava.target(name)], value, name)
    llava.fill_tower(filling, tower, "backbone.")
    llava.fill_identity(filling, layout, "backbone.")
    filling.done(allow)


def original_sam(layout: Layout) -> tuple[Shards, dict[str, str]]:
    """The files of the SAM inside, and for each original name the one in the file."""
    names = {
        name.removeprefix(INSIDE): key
        for name, key in layout.keys.items()
        if name.startswith(INSIDE)
    }
    return layout.shards, names


FORMAT = Format(
    "LISA v1, or LLaVA v1 with a SAM beside it: config.json and weights",
    recognise,
    read,
    original_sam,
)
