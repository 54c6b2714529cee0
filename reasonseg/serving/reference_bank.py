"""A reference bank: annotated images to choose examples from, by how much they resemble the picture
asked about.

A bank is a folder in any layout that `finetune` reads; our own is `images/` with `masks/LABEL/`.
What the model's eye sees of each reference is kept beside them in `.features/`, and made anew where
a file or the model has changed. Selection follows prompt-SelF: the nearest by one vector a picture
(`global`), or by all of its patches (`pixel`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from reasonseg.datasets.folder import Config, Folder
from reasonseg.datasets.layouts.base import PICTURES
from reasonseg.errors import InputError
from reasonseg.structures.images import atomic_write, read_image, read_mask
from reasonseg.structures.query import Reference

FEATURES = ".features"
BATCH = 16
By = Literal["pixel", "global", "thing"]


@dataclass(frozen=True)
class Choice:
    """A reference that was chosen, and its similarity (-1..1) to the picture."""

    reference: Reference
    similarity: float


class Bank:
    """References of a folder. `problems` names what could not be read; the rest is used."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.data: Folder = Config(str(self.folder)).build()
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> list[str]:
        """Every label of the bank."""
        return self.data.labels

    def id(self, i: int) -> str:
        """The name of reference `i`: its picture and its label."""
        entry = self.data.entries[i]
        inside = entry.picture.is_relative_to(self.folder)
        place = entry.picture.relative_to(self.folder) if inside else entry.picture
        return f"{place.as_posix()}: {', '.join(dict.fromkeys(entry.labels))}"

    def reference(self, i: int, label: str | None = None) -> Reference:
        """Reference `i`, read from its files; of several labels only what has `label`, if one is
        given.
        """
        sample = self.data[i]
        labels = sample.truth.labels
        mine = [k for k, name in enumerate(labels) if label is None or name == label]
        named = ", ".join(dict.fromkeys(labels[k] for k in mine)) or None
        return Reference(
            sample.query.image,
            mask=np.any(sample.truth.masks[mine], 0),
            label=named,
            name=self.id(i),
        )

    def select(
        self,
        segmenter,
        image: np.ndarray,
        shots: int = 1,
        label: str | None = None,
        by: By = "pixel",
        progress: bool = False,
    ) -> list[Choice]:
        """The `shots` references nearest to an image, the nearest first, weighted by their
        similarity.

        `label` leaves only references of that label; `by` compares one vector a picture (`global`),
        patch with patch at the same place (`pixel`, prompt-SelF's), or looks for the marked patches
        anywhere in the image (`thing`). Raises `InputError` where nothing is left to choose from.
        """
        mine = [i for i, e in enumerate(self.data.entries) if label is None or label in e.labels]
        if not mine:
            raise InputError(
                f"the bank {self.folder} has no reference of {label!r}; it has "
                f"{', '.join(self.labels)}"
            )
        seen = self.features(segmenter, mine, progress)
        mine = [i for i in mine if i in seen]
        if not mine:
            raise InputError(
                f"no reference of the bank {self.folder} can be read: {self.problems[0]}"
            )
        with torch.inference_mode():
            query = self._seen(segmenter, [image])[0].cpu()
        values = torch.stack([similarity(query, *seen[i], by) for i in mine])
        order = values.argsort(descending=True, stable=True)[:shots].tolist()
        shares = torch.softmax(values[order] / 0.1, 0).tolist()
        chosen = []
        for k, share in zip(order, shares, strict=True):
            reference = self.reference(mine[k], label)
            reference.weight = max(share, 1e-6)
            chosen.append(Choice(reference, float(values[k])))
        return chosen

    def features(
        self, segmenter, which: Sequence[int], progress: bool = False
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """(unit patch features `[t, c]`, share of each patch that is marked `[t]`) of references,
        from the disk where they are.

        One that cannot be read is left out and named in `problems`.
        """
        if segmenter.references is None:
            raise InputError("this model was not taught references; a bank needs one that was")
        kept = self._kept(segmenter)
        stamps = {i: _stamp(self.data.entries[i].picture, f"{i} {self.id(i)}") for i in which}
        missing = [i for i in which if stamps[i] not in kept]
        self.problems = []
        for start in tqdm(
            range(0, len(missing), BATCH),
            desc="reference bank",
            disable=not progress or not missing,
        ):
            read = []
            for i in missing[start : start + BATCH]:
                try:
                    read.append((i, self.reference(i)))
                except (InputError, OSError) as error:
                    self.problems.append(f"{self.id(i)}: {error}")
            if not read:
                continue
            with torch.inference_mode():
                patches = self._seen(segmenter, [r.image for _, r in read])
            for (i, reference), seen in zip(read, patches, strict=True):
                kept[stamps[i]] = (
                    seen.to(torch.float16).cpu(),
                    marked_shares(segmenter.references, reference.mask, len(seen)),
                )
        if missing:
            self._keep(segmenter, kept)
        return {
            i: (kept[stamps[i]][0].float(), kept[stamps[i]][1]) for i in which if stamps[i] in kept
        }

    def _seen(self, segmenter, images: list[np.ndarray]) -> torch.Tensor:
        return segmenter.references.placed(
            segmenter.references.patch_encoder.encode(images)
        ).float()

    def _file(self, segmenter) -> Path:
        return self.folder / FEATURES / f"{segmenter.fingerprint}.safetensors"

    def _kept(self, segmenter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        file = self._file(segmenter)
        if not file.is_file():
            return {}
        try:
            stored = load_file(file)
        except Exception:  # a cache that cannot be read is made anew
            return {}
        return {
            k: (v, stored["share:" + k])
            for k, v in stored.items()
            if not k.startswith("share:") and "share:" + k in stored
        }

    def _keep(self, segmenter, kept: dict) -> None:
        """Writes what belongs to a file that is still there; a folder that cannot be written to
        is used without a cache.
        """
        here = {_stamp(e.picture, f"{i} {self.id(i)}") for i, e in enumerate(self.data.entries)}
        stored = {k: v[0].contiguous() for k, v in kept.items() if k in here}
        stored |= {"share:" + k: v[1].contiguous() for k, v in kept.items() if k in here}
        try:
            self._file(segmenter).parent.mkdir(exist_ok=True)
            with atomic_write(self._file(segmenter)) as aside:
                save_file(stored, str(aside))
        except OSError:
            return


def similarity(
    query: torch.Tensor, patches: torch.Tensor, shares: torch.Tensor, by: By
) -> torch.Tensor:
    """Cosine similarity of a picture's unit patches `[t, c]` to a reference's, of whose patches
    `shares` `[t]` are marked.
    """
    if by == "global":
        return F.cosine_similarity(query.mean(0), patches.mean(0), dim=0)
    if by == "pixel":
        return (query * patches).sum(-1).mean()
    if by == "thing":
        nearest = (patches @ query.T).amax(1)
        return (nearest * shares).sum() / shares.sum().clamp(min=1e-6)
    raise InputError(f"by: {by!r} is not one of pixel, global, thing")


def marked_shares(prompter, mask: np.ndarray, patches: int) -> torch.Tensor:
    """How much of each of a number of patches of a prompter's frame a mask covers, 0..1
    `[patches]`.
    """
    framed, grid = prompter.frame(mask), round(patches**0.5)
    return F.adaptive_avg_pool2d(framed[None, None].float(), grid).flatten().cpu()


def _stamp(picture: Path, name: str) -> str:
    """Changes with the files behind a reference: the picture's size and time, and those of masks
    and annotations beside it.
    """
    stem, root = glob.escape(picture.stem), picture.parent.parent
    beside = [picture, *picture.parent.glob(stem + ".*"), *picture.parent.glob("*.json*")]
    beside += [
        *root.glob(f"masks/{stem}.*"),
        *root.glob(f"masks/*/{stem}.*"),
        *root.glob("*.json*"),
        *root.glob("annotations/*.json"),
    ]
    facts = sorted(
        {(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in beside if f.is_file()}
    )
    return hashlib.sha256(json.dumps([name, facts]).encode()).hexdigest()[:24]


def add(folder: str | Path, image: str | Path, mask: str | Path, label: str = "thing") -> str:
    """Copies an image and its mask into a bank of our own layout, made where there is none; returns
    the reference's id.

    Raises `InputError` where a file cannot be read, the mask is empty or of another size, or the
    label cannot name a folder.
    """
    folder, picture, marked = Path(folder), read_image(image), read_mask(mask)
    if marked.shape != picture.shape[:2]:
        raise InputError(
            f"{mask} is {list(marked.shape)}, its picture {list(picture.shape[:2])}; resize one"
        )
    if not marked.any():
        raise InputError(f"{mask} is empty; mark at least one pixel of the thing")
    if not label.strip() or Path(label).name != label or label.startswith("."):
        raise InputError(f"{label!r} cannot be a label here: it names a folder")
    stem = Path(image).stem
    for name in (folder / "images", folder / "masks" / label):
        name.mkdir(parents=True, exist_ok=True)
    existing = next((p for p in (folder / "images").glob(glob.escape(stem) + ".*")), None)
    if existing is not None and not np.array_equal(read_image(existing), picture):
        stem = f"{stem}-{hashlib.sha256(picture.tobytes()).hexdigest()[:8]}"
        existing = next((p for p in (folder / "images").glob(glob.escape(stem) + ".*")), None)
    if existing is None:
        suffix = Path(image).suffix.lower()
        existing = folder / "images" / (stem + (suffix if suffix in PICTURES else ".png"))
        with atomic_write(existing) as aside:
            if suffix in PICTURES:
                shutil.copyfile(image, aside)
            else:  # a GIF, or a name without an ending
                Image.fromarray(picture).save(aside, format="PNG")
    with atomic_write(folder / "masks" / label / f"{stem}.png") as aside:
        Image.fromarray(marked.astype(np.uint8) * 255).save(aside, format="PNG")
    return f"images/{existing.name}: {label}"


def remove(folder: str | Path, name: str) -> None:
    """Takes the reference of an id (`images/x.jpg: label`) out of a bank of our own layout, and its
    picture if no other marks it.

    Raises `InputError` where there is none.
    """
    folder = Path(folder)
    picture, _, label = name.rpartition(": ")
    stem = Path(picture).stem
    mask = folder / "masks" / label / f"{stem}.png"
    if (
        not picture
        or ".." in Path(picture).parts
        or Path(label).name != label
        or not mask.is_file()
    ):
        raise InputError(
            f"{folder} has no reference {name!r} under masks/; `bank list` shows the ids"
        )
    os.remove(mask)
    if not list((folder / "masks").glob(f"*/{glob.escape(stem)}.png")):
        (folder / picture).unlink(missing_ok=True)


__all__ = ["Bank", "Choice", "add", "marked_shares", "remove", "similarity"]
