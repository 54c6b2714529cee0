"""A reference bank: annotated images, from which the most similar to a query image are selected.

A bank is a folder in any layout that `finetune` reads; its default layout is `images/` with
`masks/LABEL/`. The encoder features of each reference are cached in `.features/`, and computed
again where a file or the model has changed. The selection follows prompt-SelF ("Exploring Effective
Factors for Improving Visual In-Context Learning"): the nearest by one vector per image (`global`)
or by all patches (`pixel`).
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
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from reasonseg.datasets.folder import Config, Folder
from reasonseg.datasets.layouts.base import PICTURES
from reasonseg.errors import InputError
from reasonseg.structures.images import atomic_write, read_image
from reasonseg.structures.mask_values import read_mask
from reasonseg.structures.query import Reference

FEATURES = ".features"
BATCH = 16
By = Literal["pixel", "global", "thing"]


@dataclass(frozen=True)
class Choice:
    """A selected reference, and its similarity (-1..1) to the query image."""

    reference: Reference
    similarity: float


class Bank:
    """The references of a folder.

    `problems` lists the references that could not be read; the others are used. Raises `InputError`
    where the folder holds no annotated images.

    Args:
        folder: The bank, in any layout that `finetune` reads.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.data: Folder = Config(str(self.folder)).build()
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> list[str]:
        """All labels of the bank, sorted."""
        return self.data.labels

    def id(self, i: int) -> str:
        """The id of reference `i`: its image and its labels."""
        entry = self.data.entries[i]
        inside = entry.picture.is_relative_to(self.folder)
        place = entry.picture.relative_to(self.folder) if inside else entry.picture
        return f"{place.as_posix()}: {', '.join(dict.fromkeys(entry.labels))}"

    def reference(self, i: int, label: str | None = None) -> Reference:
        """Reads a reference from its files.

        Raises `InputError` where a file cannot be read.

        Args:
            i: The index of the reference.
            label: Use only the masks with this label; None for all masks.

        Returns:
            The reference; its mask is the union of the masks.
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
        segmenter: Any,
        image: np.ndarray,
        shots: int = 1,
        label: str | None = None,
        by: By = "pixel",
        progress: bool = False,
    ) -> list[Choice]:
        """Selects the references most similar to an image.

        Args:
            segmenter: A model that was trained with references.
            image: uint8 RGB `[h, w, 3]`, the query image.
            shots: The number of references to select.
            label: Select only references with this label; None for all.
            by: The similarity. `global`: one mean vector per image. `pixel`: patches at the same
                place, as in prompt-SelF. `thing`: the marked patches, anywhere in the image.
            progress: Show a progress bar while features are computed.

        Returns:
            At most `shots` choices, the most similar first. The weights of the references are a
            softmax of their similarities with temperature 0.1.

        Raises:
            InputError: No reference has the label, none can be read, or the model was not trained
                with references.
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
        self, segmenter: Any, which: Sequence[int], progress: bool = False
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Computes the features of references, or reads them from the cache on disk.

        A reference that cannot be read is left out and listed in `problems`.

        Args:
            segmenter: A model that was trained with references.
            which: The indices of the references.
            progress: Show a progress bar.

        Returns:
            By index: (float32 unit patch features `[t, c]`, the fraction 0..1 of each patch that is
            marked `[t]`).

        Raises:
            InputError: The model was not trained with references.
        """
        if segmenter.references is None:
            raise InputError(
                "this model was not trained with references; a bank needs one that was"
            )
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
        except Exception:  # a cache that cannot be read is computed again
            return {}
        return {
            k: (v, stored["share:" + k])
            for k, v in stored.items()
            if not k.startswith("share:") and "share:" + k in stored
        }

    def _keep(self, segmenter, kept: dict) -> None:
        """Writes the cache, without the features of changed or removed files.

        A folder that cannot be written to is used without a cache.
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
    """Computes the cosine similarity of an image and a reference.

    Args:
        query: Unit patch features of the image, `[t, c]`.
        patches: Unit patch features of the reference, `[t, c]`.
        shares: The fraction 0..1 of each patch of the reference that is marked, `[t]`.
        by: `global`, `pixel` or `thing`, as in `Bank.select`.

    Returns:
        A scalar tensor, -1..1.

    Raises:
        InputError: `by` is none of these.
    """
    if by == "global":
        return F.cosine_similarity(query.mean(0), patches.mean(0), dim=0)
    if by == "pixel":
        return (query * patches).sum(-1).mean()
    if by == "thing":
        nearest = (patches @ query.T).amax(1)
        return (nearest * shares).sum() / shares.sum().clamp(min=1e-6)
    raise InputError(f"by: {by!r} is not one of pixel, global, thing")


def marked_shares(prompter: Any, mask: np.ndarray, patches: int) -> torch.Tensor:
    """Computes the fraction of each patch that a mask covers.

    Args:
        prompter: The prompter for references, whose `frame` resizes a mask as its image.
        mask: bool `[h, w]`.
        patches: The number of patches, a square number.

    Returns:
        float32 `[patches]`, 0..1.
    """
    framed, grid = prompter.frame(mask), round(patches**0.5)
    return F.adaptive_avg_pool2d(framed[None, None].float(), grid).flatten().cpu()


def _stamp(picture: Path, name: str) -> str:
    """A hash that changes with the files of a reference.

    It covers the size and modification time of the image, and of masks and annotations beside it.
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
    """Copies an image and its mask into a bank of the default layout.

    Args:
        folder: The bank; it is made if it does not exist.
        image: Path of the image file.
        mask: Path of the mask file, in the size of the image. Every pixel that is not black belongs
            to the object.
        label: The label, which becomes the name of a folder.

    Returns:
        The id of the reference.

    Raises:
        InputError: A file cannot be read, the mask is empty or of another size, or the label cannot
            be the name of a folder.
    """
    folder, picture, marked = Path(folder), read_image(image), read_mask(mask)
    if marked.shape != picture.shape[:2]:
        raise InputError(
            f"{mask} is {list(marked.shape)}, its image {list(picture.shape[:2])}; resize one"
        )
    if not marked.any():
        raise InputError(f"{mask} is empty; mark at least one pixel of the object")
    if not label.strip() or Path(label).name != label or label.startswith("."):
        raise InputError(f"{label!r} cannot be a label here: it must be the name of a folder")
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
            else:  # a GIF, or a name without a suffix
                Image.fromarray(picture).save(aside, format="PNG")
    with atomic_write(folder / "masks" / label / f"{stem}.png") as aside:
        Image.fromarray(marked.astype(np.uint8) * 255).save(aside, format="PNG")
    return f"images/{existing.name}: {label}"


def remove(folder: str | Path, name: str) -> None:
    """Removes a reference from a bank of the default layout.

    Its image is removed too, if no other mask belongs to it.

    Args:
        folder: The bank.
        name: The id of the reference, such as `images/x.jpg: label`.

    Raises:
        InputError: There is no such reference.
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
