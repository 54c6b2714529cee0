"""Features of frozen encoders, computed once and stored in a folder for all epochs and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reasonseg.nn.cache import BUDGET, ImageCache, digest, version_of
from reasonseg.nn.features import Features
from reasonseg.structures.images import atomic_write


class FeatureStore:
    """Encoded images, stored in `folder` and, up to `budget` bytes, in memory.

    Every image is encoded alone, so that the result does not depend on the rest of its batch: a
    resumed run reads what was stored before and ends with the same weights. File names are made of
    hashes of weights, preprocessing, precision and image.
    """

    def __init__(self, folder: Path, budget: int = BUDGET):
        self.folder, self.memory = folder, ImageCache(budget)
        self.names: dict[tuple, str] = {}

    @torch.no_grad()
    def __call__(self, part: Any, images: Sequence[np.ndarray]) -> Any:
        """`part.encode(images)` of a backbone or decoder, a row per image; reads what is stored."""
        device = next(part.encoders[0].parameters()).device
        cast = (
            torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else ""
        )
        how = f"{self._name(part.encoders)} {part.pixels!r} {cast}"
        whose = hashlib.blake2b(how.encode(), digest_size=12).hexdigest()
        rows = [
            self._row(f"{whose}-{digest(image).hex()}", image, part.encode, device)
            for image in images
        ]
        return torch.cat(rows) if isinstance(rows[0], torch.Tensor) else Features.joined(rows)

    def _row(
        self, name: str, image: np.ndarray, encode: Callable[[list], Any], device: torch.device
    ) -> Any:
        row, file = self.memory.find(name), self.folder / f"{name}.safetensors"
        if row is None and file.is_file():
            kept = load_file(file, device=str(device))
            row = (
                kept["row"]
                if "row" in kept
                else Features(kept.pop("0"), tuple(kept[k] for k in sorted(kept, key=int)))
            )
        elif row is None:
            row = encode([image])
            maps = (
                {"row": row}
                if isinstance(row, torch.Tensor)
                else dict(enumerate([row.embedding, *row.more]))
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as aside:
                save_file({str(k): m.contiguous() for k, m in maps.items()}, aside)
        else:
            return row
        self.memory.keep(name, row)
        return row

    def _name(self, encoders: Sequence[nn.Module]) -> str:
        key = tuple(version_of(module) for module in encoders)
        if key not in self.names:
            found = hashlib.blake2b(digest_size=8)
            for parameter in (p for module in encoders for p in module.parameters()):
                found.update(parameter.detach().float().cpu().numpy().tobytes())
            self.names[key] = found.hexdigest()
        return self.names[key]


def are_frozen(encoders: Sequence[nn.Module]) -> bool:
    """Whether there are encoders and no parameter of them is trained."""
    return bool(encoders) and not any(
        p.requires_grad for module in encoders for p in module.parameters()
    )


def stored(store: FeatureStore | None, part: Any, images: list) -> Any:
    """`part.encode(images)` by the store; None without a store, or with trained encoders."""
    return store(part, images) if store is not None and are_frozen(part.encoders) else None
