"""Models whose pretrained parts come from pip packages: a folder with `packages.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlavaForConditionalGeneration

from reasonseg.backbones.llava import Config, Llava, network_of
from reasonseg.checkpoints import part_packages
from reasonseg.checkpoints.delta import PACKAGED
from reasonseg.checkpoints.parts import Parts, with_prompters
from reasonseg.checkpoints.released.base import Format, LoadOptions
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import parse
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.meta_init import meta_init
from reasonseg.nn.quantization import quantize
from reasonseg.structures.conversations import IMAGE
from reasonseg.structures.markers import REJ, SEG

SEED = 0  # of the weights that no package has


def recognise(place: Path) -> Path | None:
    """The folder itself; None where it is something else."""
    return place if (place / PACKAGED).is_file() else None


def read(place: Path, options: LoadOptions) -> Parts:
    """The parts, with the packages' weights and fresh ones elsewhere.

    Raises `InputError` where a package is missing or another one.
    """
    options.refuse(place, "clip", "template", "read", "sam", why="does not apply to this model")
    content = yaml.safe_load((place / PACKAGED).read_text(encoding="utf-8"))
    settings = parse(ModelSettings, content["settings"])
    dtype = options.dtype or torch.float32
    tower = part_packages.tower_weights()
    words, metadata = part_packages.language_weights(dtype)
    tokenizer = part_packages.language_tokenizer(metadata, (IMAGE, SEG, REJ))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        parts = _built(settings, words, tokenizer)
    for name in content["packages"]["tower"]:
        parts.get_submodule(name).load_state_dict(tower)
    assert parts.backbone is not None
    if options.quantization:
        quantize(parts.backbone.layers, options.quantization, dtype, options.device)
    return parts.to(options.device, dtype).eval()


def _built(settings: ModelSettings, words: dict[str, torch.Tensor], tokenizer: Any) -> Parts:
    assert settings.backbone is not None and settings.prompter is not None
    config: Config = settings.backbone.config
    network = network_of(config.network, tokenizer)
    added = len(tokenizer) - len(words["embed_tokens.weight"])
    with meta_init():
        model = LlavaForConditionalGeneration(network)
    rows = words["embed_tokens.weight"]
    words = {**words, "embed_tokens.weight": torch.cat([rows, _new_rows(rows, added)])}
    model.model.language_model.load_state_dict(words, assign=True)
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    # the parts that no package fills get real weights
    model.model.vision_tower = type(model.model.vision_tower)(network.vision_config)
    model.model.multi_modal_projector = type(model.model.multi_modal_projector)(network)
    pixels = ImageProcessor(**{"size": network.vision_config.image_size, **config.pixels})
    backbone = Llava(model, tokenizer, pixels, config)
    return with_prompters(settings, backbone, settings.decoder.config.build())


def _new_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of new tokens: near the mean of all."""
    fresh = rows.float().mean(0) + 0.1 * rows.float().std(0) * torch.randn(count, rows.shape[1])
    return fresh.to(rows.dtype)


FORMAT = Format("models over pip packages (packages.yaml)", recognise, read)
