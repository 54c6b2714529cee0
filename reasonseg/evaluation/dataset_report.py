"""Checks a data set before use: reads and counts all samples, draws some, finds shared images.

Shared images are those that are in two splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from reasonseg.datasets.layouts.base import Remark
from reasonseg.errors import InputError
from reasonseg.structures.contact_sheet import save_sheet

SHOWN, NAMED = 8, 20  # samples drawn of each split, and problems listed


@dataclass
class DatasetReport:
    """The results of a check.

    - `counts`: samples, images, and mean marked share of an image (0..1) of each split.
    - `missing`: the splits that do not exist, with the reason.
    - `problems`: (split, id, message) of the samples that cannot be read.
    - `shared`: the number of images that two splits have in common.
    - `remarks`: what was noticed; a remark that is `lost` says that something is not used.
    """

    counts: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    shared: dict[tuple[str, str], int] = field(default_factory=dict)
    remarks: dict[Remark, None] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether every sample can be read and nothing in the files is left out."""
        return not self.problems and not any(remark.lost for remark in self.remarks)

    def lines(self) -> list[str]:
        """The report as sentences, one per line."""
        sentences = [
            f"{split}: {samples} samples on {pictures} pictures, {100 * share:.1f} % marked on "
            "average"
            for split, (samples, pictures, share) in self.counts.items()
        ]
        sentences += [f"{split}: not there ({why})" for split, why in self.missing.items()]
        sentences += listed("broken: ", [f"{s}, {name}: {what}" for s, name, what in self.problems])
        lost = [remark.text for remark in self.remarks if remark.lost]
        sentences += listed("not used: ", lost)
        sentences += listed("note: ", [r.text for r in self.remarks if not r.lost])
        return sentences + [
            f"{a} and {b} share {n} pictures: do not train on one and test on the other"
            for (a, b), n in self.shared.items()
        ]


def listed(start: str, texts: Sequence[str]) -> list[str]:
    """Sentences with the same start; of many the first `NAMED`, and how many more there are."""
    more = len(texts) - NAMED
    return [start + text for text in texts[:NAMED]] + (
        [f"{start}and {more} more"] if more > 0 else []
    )


def inspect(configs: Mapping[str, Any], out: str | Path, progress: bool = True) -> DatasetReport:
    """Checks the data sets in `configs` (by split) and draws some samples of each under `out`.

    Raises `InputError` where no split exists.
    """
    found, pictures = DatasetReport(), {}
    for split, config in configs.items():
        try:
            data = config.build()
        except InputError as error:
            found.missing[split] = str(error)
            continue
        pictures[split] = _read(split, data, Path(out) / split, found, progress)
    if not pictures:
        raise InputError("; ".join(dict.fromkeys(found.missing.values())))
    names = list(pictures)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if common := len(pictures[a] & pictures[b]):
                found.shared[a, b] = common
    return found


def _read(split: str, data, out: Path, found: DatasetReport, progress: bool) -> set[str]:
    """Reads every sample of a split; returns the hashes of its images."""
    seen, shares, shown, latest = set(), [], [], None
    every = max(len(data) // SHOWN, 1)
    for i in tqdm(range(len(data)), desc=split, disable=not progress):
        try:
            sample = data[i]
        except InputError as error:
            found.problems.append((split, data.id(i), str(error)))
            continue
        if sample.query.image is not latest:
            latest = sample.query.image
            seen.add(hashlib.sha256(latest.tobytes()).hexdigest())
        shares.append(float(sample.truth.masks.any(0).mean()) if len(sample.truth.masks) else 0.0)
        if i % every == 0 and len(shown) < SHOWN:
            shown.append(sample)
    remarks = getattr(data, "remarks", [])
    found.remarks |= dict.fromkeys(remarks)
    if shown:
        save_sheet(shown, out, [remark.text for remark in remarks])
    found.counts[split] = (len(data), len(seen), float(np.mean(shares)) if shares else 0.0)
    return seen
