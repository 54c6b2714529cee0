"""What a training changed in a model, as a small folder that names the model it belongs to.

`changes.safetensors` holds whole parameters, rows of embeddings and LoRA pairs; `changes.yaml` the model below them, by where it
is and by what its files hold. `Segmenter.from_pretrained` reads such a folder like any other; `reasonseg merge` makes it whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from reasonseg.adapters import NAME, adapters, add_lora
from reasonseg.errors import InputError
from reasonseg.hub import place_of, replaced
from reasonseg.weights import refuse

FILE = "changes.yaml"
WEIGHTS = "changes.safetensors"
ENDS = 2**20  # bytes at either end of a file of weights that tell it from another


@dataclass
class Changes:
    """`tensors` by what they are and the name of their parameter or layer: `whole:`, `rows:`, `lora_A:` and `lora_B:`.

    `rows` are the ids of those rows, `alpha` that of LoRA. `about` is the changed model's.
    """

    tensors: dict[str, torch.Tensor]
    rows: list[int] = field(default_factory=list)
    alpha: float = 16.0
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, segmenter: nn.Module, alpha: float) -> Changes:
        """What a model's training works on (everything that requires a gradient), before adapters are folded."""
        found, rows = {}, []
        for name, layer in adapters(segmenter).items():
            if hasattr(layer, "lora_A"):
                found |= {f"lora_{s}:{name}": getattr(layer, f"lora_{s}")[NAME].weight for s in "AB"}
            elif not layer.tied_adapter:
                found[f"rows:{name}.weight"], rows = layer.trainable_tokens_delta[NAME], layer.token_indices[NAME]
        beside = (".lora_", "trainable_tokens")
        for name, p in segmenter.named_parameters():
            if p.requires_grad and not any(mark in name for mark in beside):
                found[f"whole:{name}"] = p
        return cls(found, list(rows), alpha)

    def save(self, folder: Path, base: dict) -> None:
        """Writes the folder; `base` are the keywords that load the model below."""
        if base["source"] is not None and Path(base["source"]).exists():
            base = {**base, "source": str(Path(base["source"]).resolve())}
        holds = identity(place_of(base["source"], base.get("revision")))
        told = {"base": base, "holds": holds, "rows": self.rows, "alpha": self.alpha, "about": self.about}
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.tensors.items()}
        with replaced(folder) as aside:
            save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
            (aside / FILE).write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def apply(self, segmenter: nn.Module, source: Path) -> None:
        """Changes a model as the training did. Raises `InputError` where a name or shape does not fit."""
        own = dict(segmenter.named_parameters(remove_duplicate=False))
        wanted = {key: key.split(":", 1) for key in self.tensors}
        problems = [("left over", key, "") for key, (kind, name) in wanted.items() if _target(kind, name) not in own]
        for key, (kind, name) in wanted.items():
            here = own.get(_target(kind, name))
            if kind == "whole" and here is not None and here.shape != self.tensors[key].shape:
                problems.append(("reshaped", key, f" is {list(self.tensors[key].shape)}, not {list(here.shape)}"))
        refuse(problems, source, ())
        with torch.no_grad():
            for key, (kind, name) in wanted.items():
                if kind == "whole":
                    own[name].copy_(self.tensors[key])
                elif kind == "rows":
                    own[name][self.rows] = self.tensors[key].to(own[name])
        self._apply_lora(segmenter)

    def _apply_lora(self, segmenter: nn.Module) -> None:
        names = [key.removeprefix("lora_A:") for key in self.tensors if key.startswith("lora_A:")]
        if not names:
            return
        layers, rank = segmenter.backbone.layers, self.tensors[f"lora_A:{names[0]}"].shape[0]
        inside = next(n for n, m in segmenter.named_modules() if m is layers) + "."
        add_lora(layers, rank, self.alpha, targets=[name.removeprefix(inside) for name in names])
        for name in names:
            layer = segmenter.get_submodule(name)
            for part in "AB":
                getattr(layer, f"lora_{part}")[NAME].weight.data = self.tensors[f"lora_{part}:{name}"].to(
                    segmenter.device
                )


def _target(kind: str, name: str) -> str:
    return name if kind in ("whole", "rows") else f"{name}.weight"


def read(folder: Path) -> tuple[dict, Changes]:
    """The keywords that load the model below, and the changes. Raises `InputError` where that model is gone or another one."""
    try:
        told = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
        base, holds = dict(told["base"]), told["holds"]
        changes = Changes(load_file(folder / WEIGHTS), told["rows"], told["alpha"], told["about"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} holds changes that cannot be read: {error}; fetch it again") from None
    except Exception as error:  # safetensors' own
        raise InputError(f"{folder / WEIGHTS} cannot be read, it may be cut short: {error}; fetch it again") from None
    try:
        place = place_of(base["source"], base.get("revision"))
    except InputError as error:
        raise InputError(f"{folder} changes another model, and {error}; correct base in {FILE}") from None
    if identity(place) != holds:
        raise InputError(
            f"{folder} changes the model {base['source'] or 'in the package'}, whose weights are others now"
        )
    return base, changes


def identity(place: Path) -> str:
    """A hash of the sizes and both ends of all files of weights in a folder (or of one file)."""
    kinds = {".safetensors", ".bin", ".pt", ".pth"}
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.suffix in kinds)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size}".encode() + stream.read(ENDS))
            stream.seek(max(size - ENDS, 0))
            digest.update(stream.read(ENDS))
    return digest.hexdigest()
