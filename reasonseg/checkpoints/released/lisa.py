"""LISA checkpoints, released or from training, and LLaVA v1 with a SAM beside it as the start of a new training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from reasonseg.nn import quantization as quant
from reasonseg.config.schema import Kind, config_class
from reasonseg.decoders import sam as sam_room
from reasonseg.errors import InputError
from reasonseg.nn.meta_init import Filling, hollow
from reasonseg.nn.image_processor import Pixels
from reasonseg.prompters.seg_token import Config as SegTokenConfig
from reasonseg.checkpoints.released import llava, sam
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.layout import Layout
from reasonseg.segmenters.embedding import Segmenter
from reasonseg.config.model import ModelSettings
from reasonseg.backbones.base import REJ, SEG, Markers

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # SAM's, of 0..255


def read(
    layout: Layout, *, device: torch.device, dtype: torch.dtype | None, quantization: str | None = None, clip: str | None = None,
    sam_from: str | None = None, template: str | None = None, at: str | None = None, allow: tuple[str, ...] = (),
) -> Segmenter:  # fmt: skip
    """The segmenter in a layout, in `dtype` (None: every tensor as stored, to be saved).

    Raises `InputError` naming file, expected and found wherever parts do not fit.
    """
    if not layout.is_lisa and sam_from is None:
        raise InputError(
            f"{layout.folder} is LLaVA, which draws no masks; give a mask decoder to start a training from as sam (--sam)"
        )
    tokenizer = llava.tokenizer_of(layout)
    if not layout.is_lisa:
        tokenizer.add_tokens([SEG, REJ])
    Markers.find(tokenizer)
    tower = llava.tower_folder(layout, clip)
    vision = llava.tower_config(layout, tower)
    with hollow():
        backbone = llava.backbone_of(layout, tokenizer, vision, tower, template)
        decoder = None if sam_from else hollow_sam(layout.sam_keys, lambda k: layout.shape("model.visual_model." + k))
    kind = "sam"
    if sam_from:
        kind, decoder = decoder_from(sam_from, device, dtype, allow)
    config = SegTokenConfig(at or "predicting", backbone.width, decoder.width)
    with hollow():
        prompter = config.build()
    drawn = Kind(kind, config_class("decoders", kind)())
    parts = {"backbone": Kind("llava", backbone.config), "prompter": Kind("seg_token", config), "decoder": drawn}
    about = {"name": "lisa"} if layout.is_lisa else {"name": "llava", "new_tokens": True}
    settings = ModelSettings(**parts, max_new_tokens=512, about=about)
    segmenter = Segmenter(settings, backbone, prompter, decoder)
    if quantization:
        quant.prepare(backbone.layers, quantization, dtype)
    fill(segmenter, layout, tower, device, dtype, allow, with_sam=not sam_from)
    rows = backbone.model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        with drawn_alike():
            backbone.model.resize_token_embeddings(len(tokenizer))
    return segmenter.eval()


@contextmanager
def drawn_alike() -> Iterator[None]:
    """What starts at random inside starts the same at every load, so that a killed training finds its model again."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def fill(segmenter, layout, tower: Path, device, dtype, allow, with_sam: bool) -> None:
    """Fills a hollow segmenter, shard by shard."""
    filling = Filling(segmenter, device, dtype, layout.folder)
    if not with_sam:  # has its values already
        filling.filled |= {name for name in filling.parameters if name.startswith("decoder.")}
    if not layout.is_lisa:
        filling.filled |= {name for name in filling.parameters if name.startswith("prompter.")}
        with drawn_alike():
            fresh = segmenter.prompter.config.build().to(device, dtype or torch.float32)
        segmenter.prompter.load_state_dict(fresh.state_dict(), assign=True)
    heads = sam.head_layers(layout.sam_keys) if with_sam else 0
    for name, value in layout.items():
        if name.startswith("model.visual_model."):
            if with_sam:
                ours = sam.renamed(name.removeprefix("model.visual_model."), heads)
                filling.put([f"decoder.model.{o}" for o in ours], value, name)
        elif name.startswith("model.text_hidden_fcs."):
            filling.put([name.replace("model.text_hidden_fcs.0.", "prompter.mlp.")], value, name)
        else:
            filling.put(["backbone." + llava.target(name)], value, name)
    llava.fill_tower(filling, tower, "backbone.")
    llava.fill_identity(filling, layout, "backbone.")
    filling.done(allow)


def hollow_sam(names: list[str], shape) -> sam_room.SamDecoder:
    """A decoder without values that fits original tensors; call it inside `hollow()`."""
    config = sam.config_of(names, shape)
    mean, std = (tuple(v / 255 for v in values) for values in (MEAN, STD))
    return sam_room.SamDecoder(sam_room.SamModel(config), Pixels(config.vision_config.image_size, mean, std))


def decoder_from(source: str, device: torch.device, dtype: torch.dtype | None, allow: tuple[str, ...] = ()):
    """(kind, decoder) from an original .pth, or a transformers folder or hub id of SAM, SAM-HQ or SAM 2."""
    path = Path(source)
    if path.is_file():
        shards = Shards(path)
        names = list(shards.of)
        with hollow():
            decoder = hollow_sam(names, shards.shape)
        filling, heads = Filling(decoder, device, dtype, path), sam.head_layers(names)
        for name, value in shards.items():
            filling.put([f"model.{ours}" for ours in sam.renamed(name, heads)], value, name)
        filling.done(allow)
        return "sam", decoder
    return hub_decoder(path, source, device, dtype, allow)


def hub_decoder(path: Path, source: str, device, dtype, allow):
    """(kind, decoder) from a folder in transformers' layout; the room's files say which model types they read."""
    from transformers import AutoConfig

    from reasonseg.nn.pretrained import download

    folder = path if path.is_dir() else download(source, None, "give a .pth file or a transformers folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; a mask decoder is a .pth file or a transformers folder")
    type_ = AutoConfig.from_pretrained(folder).model_type
    kind = "sam2" if type_.startswith("sam2") else "sam"
    decoder = config_class("decoders", kind).load(folder, allow, dtype=dtype or "auto")
    return kind, decoder.to(device)
