"""What a training changed in a model, as a small folder that names the model it belongs to.

`changes.safetensors` holds whole parameters, rows of embeddings and LoRA pairs; `changes.yaml` the
model below them, by where it is and by what its files hold. `Segmenter.from_pretrained` reads such
a folder like any other; `reasonseg merge` makes it whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from reasonseg.checkpoints.file_hashes import hash_of
from reasonseg.checkpoints.part_packages import PACKAGES
from reasonseg.errors import InputError
from reasonseg.nn.lora import NAME, adapters, add_lora
from reasonseg.nn.pretrained import atomic_folder, model_path, refuse
from reasonseg.nn.quantization import is_quantized

FILE = "changes.yaml"
WEIGHTS = "changes.safetensors"
PACKAGED = "packages.yaml"
LOADED_BY = ("source", "clip", "sam", "template", "read", "allow", "revision")


@dataclass
class Changes:
    """`tensors` by what they are and the name of their parameter or layer: `whole:`, `rows:`,
    `lora_A:` and `lora_B:`.

    `rows` are the ids of those rows, `alpha` that of LoRA. `about` is the changed model's.
    """

    tensors: dict[str, torch.Tensor]
    rows: list[int] = field(default_factory=list)
    alpha: float = 16.0
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, segmenter: nn.Module, alpha: float) -> Changes:
        """What a model's training works on (everything that requires a gradient), before
        adapters are folded.
        """
        from peft.tuners.lora import LoraLayer

        found: dict[str, torch.Tensor] = {}
        rows: list[int] = []
        layers: dict[str, Any] = dict(adapters(segmenter))
        for name, layer in layers.items():
            if isinstance(layer, LoraLayer):
                found |= {
                    f"lora_{s}:{name}": getattr(layer, f"lora_{s}")[NAME].weight for s in "AB"
                }
            elif not layer.tied_adapter:
                found[f"rows:{name}.weight"] = layer.trainable_tokens_delta[NAME]
                rows = layer.token_indices[NAME]
        beside = (".lora_", "trainable_tokens")
        for name, p in segmenter.named_parameters():
            if p.requires_grad and not any(mark in name for mark in beside):
                found[f"whole:{name}"] = p
        return cls(found, list(rows), alpha)

    def save(self, folder: Path, origin: dict) -> None:
        """Writes the folder; `origin` is that of the model below (`Segmenter.origin`)."""
        base = {name: value for name, value in origin.items() if name != "holds"}
        content = {
            "base": base,
            "holds": origin["holds"],
            "rows": self.rows,
            "alpha": self.alpha,
            "about": self.about,
        }
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.tensors.items()}
        with atomic_folder(folder) as aside:
            save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
            (aside / FILE).write_text(
                yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
            )

    def apply(self, segmenter: nn.Module, source: Path) -> None:
        """Changes a model as the training did. Raises `InputError` where a name or shape does
        not fit.
        """
        own = dict(segmenter.named_parameters(remove_duplicate=False))
        own |= dict(segmenter.named_buffers())
        refuse([p for key in self.tensors if (p := self._problem(key, own))], source, ())
        with torch.no_grad():
            for key, value in self.tensors.items():
                kind, _, name = key.partition(":")
                if kind == "whole":
                    own[name].copy_(value)
                elif kind == "rows":
                    own[name][self.rows] = value.to(own[name])
            self._apply_lora(segmenter)

    def _problem(self, key: str, own: dict[str, torch.Tensor]) -> tuple[str, str, str] | None:
        kind, _, name = key.partition(":")
        here = own.get(name if kind in ("whole", "rows") else f"{name}.weight")
        if here is None or kind not in ("whole", "rows", "lora_A", "lora_B"):
            return "left over", key, ""
        shape = tuple(self.tensors[key].shape)
        if kind == "whole":
            return (
                None
                if shape == here.shape
                else ("reshaped", key, f" is {list(shape)}, not {list(here.shape)}")
            )
        if kind == "rows":
            fits = shape == (len(self.rows), here.shape[-1]) and all(
                0 <= row < len(here) for row in self.rows
            )
            return (
                None
                if fits
                else (
                    "reshaped",
                    key,
                    f" is {list(shape)}, for rows {self.rows} of {list(here.shape)}",
                )
            )
        pair = [self.tensors.get(f"lora_{part}:{name}") for part in "AB"]
        if pair[0] is None or pair[1] is None:
            return "missing", f"{name}: the other half of its LoRA pair", ""
        fits = (
            pair[0].ndim == pair[1].ndim == 2 and pair[0].shape[0] == pair[1].shape[1] == self._rank
        )
        fits = fits and (
            here.ndim != 2
            or here.shape[1] == 1
            or (pair[1].shape[0], pair[0].shape[1]) == here.shape
        )
        return None if fits else ("reshaped", key, f" is {list(shape)}, for {list(here.shape)}")

    @property
    def _rank(self) -> int:
        return next(
            (v.shape[0] for key, v in self.tensors.items() if key.startswith("lora_A:") and v.ndim),
            0,
        )

    def _apply_lora(self, segmenter: Any) -> None:
        """Folds LoRA into weights; quantized ones get adapters beside them."""
        names = [key.removeprefix("lora_A:") for key in self.tensors if key.startswith("lora_A:")]
        beside = []
        for name in names:
            layer = segmenter.get_submodule(name)
            if is_quantized(layer):
                beside.append(name)
                continue
            a, b = (self.tensors[f"lora_{part}:{name}"].to(layer.weight.device) for part in "AB")
            delta = self.alpha / self._rank * (b.float() @ a.float())
            layer.weight.add_(delta.to(layer.weight.dtype))
        if beside:
            self._adapters(segmenter, beside)

    def _adapters(self, segmenter: Any, names: list[str]) -> None:
        layers = segmenter.backbone.layers
        inside = next(n for n, m in segmenter.named_modules() if m is layers) + "."
        add_lora(
            layers, self._rank, self.alpha, targets=[name.removeprefix(inside) for name in names]
        )
        for name in names:
            layer = segmenter.get_submodule(name)
            for part in "AB":
                getattr(layer, f"lora_{part}")[NAME].weight.data = self.tensors[
                    f"lora_{part}:{name}"
                ].to(segmenter.device)


def read(folder: Path) -> tuple[dict, Changes]:
    """The keywords that load the model below, and the changes. Raises `InputError` where that
    model is gone or another one.
    """
    try:
        content = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
        base, rows, alpha, about = (content[name] for name in ("base", "rows", "alpha", "about"))
        if not isinstance(base, dict) or not set(base) <= set(LOADED_BY) or "source" not in base:
            raise ValueError(f"base is {base!r}, not source with any of {', '.join(LOADED_BY[1:])}")
        texts = [value for name, value in base.items() if name != "allow"]
        if not all(isinstance(v, str) or v is None for v in [*texts, *base.get("allow", [])]):
            raise ValueError(f"base is {base!r}, in which something is no text")
        if not (isinstance(rows, list) and all(type(row) is int for row in rows)):
            raise ValueError(f"rows is {rows!r}, not a list of numbers")
        if not isinstance(alpha, int | float) or not isinstance(about, dict):
            raise ValueError(
                f"alpha is {alpha!r}, about {about!r}; a number and names with values belong there"
            )
        changes = Changes(load_file(folder / WEIGHTS), rows, float(alpha), about)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} holds changes that cannot be read: {error}; correct {FILE} or fetch it again"
        ) from None
    except SafetensorError as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read, it may be cut short: {error}; fetch it again"
        ) from None
    try:
        holds = identity(base)
    except InputError as error:
        raise InputError(
            f"{folder} changes another model, and {error}; correct base in {FILE}"
        ) from None
    if holds != content.get("holds"):
        name = base["source"] or "in the package"
        raise InputError(
            f"{folder} changes the model {name}, whose weights are others now (or an older version "
            f"wrote it); name the right one as base in {FILE}, and if it is right, holds: {holds}"
        )
    return base, changes


def origin_of(place: Path, keywords: dict[str, Any]) -> dict[str, Any]:
    """What to write down of how a model was loaded: paths that hold from anywhere, a hub's
    commit, a hash of its weights.
    """
    said = {name: value for name, value in keywords.items() if value or name == "source"}
    for name in ("source", "clip", "sam"):
        if said.get(name) and Path(said[name]).exists():
            said[name] = str(Path(said[name]).resolve())
    if place.parent.name == "snapshots":
        said["revision"] = place.name
    return {**said, "holds": identity(said)}


def identity(base: dict[str, Any]) -> str:
    """A SHA-256 hash of all bytes of the weight files of the model below (`hash_of`)."""
    digest = hashlib.sha256()
    for file in weight_files(base):
        digest.update(f"{file.name} {hash_of(file)}".encode())
    return f"sha256:{digest.hexdigest()}"


def weight_files(base: dict[str, Any]) -> list[Path]:
    """The weight files that keywords of `from_pretrained` name."""
    places = [model_path(base["source"], base.get("revision"))]
    places += [
        Path(base[name]) for name in ("clip", "sam") if base.get(name) and Path(base[name]).exists()
    ]
    return [file for place in places for file in _weights(place)]


def _weights(place: Path) -> list[Path]:
    """A model's own files: what else lies in its folder is not of it."""
    if place.is_file():
        return [place]
    if (place / PACKAGED).is_file():  # what its parts are, and the weights of pip packages
        return [place / PACKAGED, *(package.checked() for package in PACKAGES)]
    inside = (
        ("backbone", "decoder", "references", "refiner")
        if (place / "settings.yaml").is_file()
        else ()
    )
    folders = [place, *(place / name for name in inside)]
    kinds = (".safetensors", ".bin", ".pt", ".pth")
    # it holds the hash of what lies below
    below = [place / FILE] if (place / FILE).is_file() else []
    return [
        *below,
        *(f for d in folders if d.is_dir() for f in sorted(d.iterdir()) if f.suffix in kinds),
    ]
