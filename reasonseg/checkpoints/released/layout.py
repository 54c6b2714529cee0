"""What a folder of released weights is, by its content: the fields of config.json and the names of
its tensors, never its own name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from reasonseg.checkpoints.released.files import SUFFIXES, Shards
from reasonseg.errors import InputError

WRAPPED = "base_model.model."  # what peft puts before every name
# recomputed, or read from CLIP's own folder
SKIPPED = re.compile(r"(rotary_emb\.inv_freq|position_ids)$|^model\.vision_tower\.")
ADAPTER = re.compile(r"^(?P<base>.*)\.lora_(?P<side>[AB])(\.\w+)?\.weight$")
LORA_ALPHA = (
    16.0  # of LISA's published recipe, where no adapter_config.json lies beside the weights
)
V0 = ("pytorch_model-visual_model.bin", "pytorch_model-text_hidden_fcs.bin")


@dataclass
class Layout:
    """A LISA or LLaVA v1 checkpoint: `config` and where each tensor lies, by its plain name."""

    folder: Path
    config: dict
    shards: Shards
    keys: dict[str, str]  # plain name -> name in the file
    # plain name of a weight -> {"A": key, "B": key}
    adapters: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def is_lisa(self) -> bool:
        """Whether a mask decoder and the projection to its prompts are inside."""
        return any(k.startswith("model.text_hidden_fcs.") for k in self.keys)

    @cached_property
    def sam_keys(self) -> list[str]:
        """Original names of the tensors of the SAM inside."""
        lead = "model.visual_model."
        return [k.removeprefix(lead) for k in self.keys if k.startswith(lead)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its plain name."""
        if name not in self.keys:
            raise InputError(f"{self.folder} lacks {name}")
        return self.shards.shape(self.keys[name])

    def items(self):
        """(plain name, tensor) shard by shard, adapters merged into their weights: W + alpha/r B
        A, in the dtype of W.
        """
        plain = {key: name for name, key in self.keys.items()}
        _ = self._adapted
        for key, value in self.shards.items():
            if key not in plain:
                continue  # an adapter, or skipped
            name = plain[key]
            yield name, self._merged(name, value) if name in self.adapters else value

    def _merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        down, up = self._adapted[name]
        return weight + self.alpha / len(down) * (up.to(weight.dtype) @ down.to(weight.dtype))

    @cached_property
    def _adapted(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The two factors of every adapter, which are small, read file by file."""
        wanted = {key for sides in self.adapters.values() for key in sides.values()}
        found = {key: self.shards.tensor(key).clone() for key in self.shards.of if key in wanted}
        return {
            name: (found[sides["A"]], found[sides["B"]]) for name, sides in self.adapters.items()
        }

    @cached_property
    def alpha(self) -> float:
        """LoRA's alpha: from adapter_config.json beside the weights, or that of LISA's recipe."""
        file = self.folder / "adapter_config.json"
        return (
            float(json.loads(file.read_text(encoding="utf-8")).get("lora_alpha", LORA_ALPHA))
            if file.is_file()
            else LORA_ALPHA
        )


def recognise(source: str | Path) -> Layout | None:
    """The layout of a folder (or of a weight file in one), None where it is neither LISA's nor
    LLaVA's.

    Raises `InputError` for LISA's v0 layout and for files that cannot be read.
    """
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    file = folder / "config.json"
    if not file.is_file() or (source.is_file() and source.suffix not in SUFFIXES):
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from None
    if "mm_vision_tower" not in config and "vision_tower" not in config:
        return None
    patches = "train_mask_decoder" in config and config.get("mm_use_im_patch_token")
    if patches or any((folder / name).is_file() for name in V0):
        raise InputError(
            f"{folder} is a LISA v0 checkpoint: it repeats <im_patch> inside the text and keeps "
            "its mask decoder in files of its "
            "own, and its prompts differ; only v1 layouts are read (use a v1 checkpoint)"
        )
    shards = Shards(source)
    keys, adapters = {}, {}
    for key in shards.of:
        name = key.removeprefix(WRAPPED)
        if SKIPPED.search(name):
            continue
        if found := ADAPTER.match(name):
            adapters.setdefault(found["base"] + ".weight", {})[found["side"]] = key
        else:
            keys[name.replace(".base_layer.", ".")] = key
    if "model.embed_tokens.weight" not in keys:
        return None
    for name, sides in adapters.items():
        if name not in keys or set(sides) != {"A", "B"}:
            raise InputError(
                f"{source}: the adapter of {name} lacks "
                f"{'its weight' if name not in keys else 'a side'}"
            )
    return Layout(folder, config, shards, keys, adapters)
