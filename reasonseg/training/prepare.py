"""The settings of a fine-tuning run, and the check of its folder before a model is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from reasonseg.config.schema import differences
from reasonseg.datasets.folder import VALIDATION, Config, Folder, check
from reasonseg.datasets.layouts.base import Scan
from reasonseg.errors import InputError
from reasonseg.structures.contact_sheet import save_sheet
from reasonseg.structures.images import atomic_write, make_folder

SHOWN = 12  # samples that are drawn


@dataclass(frozen=True)
class Steps:
    """Training settings of a fine-tuning run.

    - `lora`: rank of the adapters on the language model's q and v projections. 0 trains the
      language model's layers, embeddings and head in full.
    - `alpha`: the adapters are scaled by `alpha` / rank.
    - `tokens`: in a model with new markers, their `rows` are trained, or embeddings and head
      `whole` (LISA's recipe).
    - `accumulate`: number of micro-batches into which a batch is split, one after the other.
    - `checkpointing`: activations of the language model's layers are computed again in the backward
      pass and not kept. Both this and `accumulate` save memory for time.
    - `save`: a whole `model`, or the `changes` only, a small folder with the name of the model to
      which they apply.
    - `max_steps`, `batch` (questions per step), `lr` (peak learning rate), `warmup` (steps),
      `save_every` (steps between checkpoints), `seed`.
    """

    max_steps: int = 300
    batch: int = 8
    lr: float = 3e-4
    warmup: int = 20
    lora: int = 8
    alpha: float = 16.0
    tokens: Literal["rows", "whole"] = "rows"
    save: Literal["model", "changes"] = "model"
    accumulate: int = 1
    checkpointing: bool = False
    save_every: int = 50
    seed: int = 0

    def __post_init__(self):
        for name in ("max_steps", "batch", "accumulate", "save_every"):
            _in_range(f"train.{name}", getattr(self, name), 1)
        for name in ("warmup", "lora", "seed"):
            _in_range(f"train.{name}", getattr(self, name), 0)
        for name in ("lr", "alpha"):
            _in_range(f"train.{name}", getattr(self, name), 0, above=True)
        if self.batch % self.accumulate:
            raise InputError(
                f"train.accumulate={self.accumulate}: it does not divide train.batch={self.batch}"
            )


@dataclass(frozen=True)
class Data:
    """Settings of the data.

    `share` (0..1) of the images is kept for validation, where the folder has no splits of its own;
    `absent` (0..1) of the questions are about things that are not in the image. `void`, `classes`
    and `encoding` are those of `datasets/folder.py`.
    """

    share: float = 0.1
    absent: float = 0.1
    void: Any = None
    classes: Any = None
    encoding: str | None = None

    def __post_init__(self):
        _in_range("data.share", self.share, 0, 1, above=True)
        _in_range("data.absent", self.absent, 0, 1)


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings that `reasonseg finetune FOLDER ... key=value` can change."""

    train: Steps = field(default_factory=Steps)
    data: Data = field(default_factory=Data)


@dataclass
class Prepared:
    """A folder whose samples were all read: its settings, its samples, and the ids of bad ones."""

    config: Config
    samples: Folder
    bad: tuple[str, ...]

    def part(self, split: str, absent: float = 0.0) -> Config:
        """The settings of a split without the bad samples."""
        return replace(self.config, split=split, absent=absent, skipped=self.bad)

    def show(self, out: Path) -> None:
        """Draws some samples as they were read into `understood/`, and what was noticed."""
        samples = self.samples
        good = [i for i in range(len(samples)) if samples.id(i) not in self.bad]
        shown = [samples[i] for i in good[:: max(len(good) // SHOWN, 1)][:SHOWN]]
        save_sheet(shown, out / "understood", [remark.text for remark in samples.remarks])


def prepare(
    root: str, out: str | Path, settings: FinetuneSettings, skip_bad: bool = False
) -> Prepared:
    """Checks a folder before a run: reads every sample.

    Raises `InputError` with a list of all samples that cannot be read (unless `skip_bad`), where
    nothing is left to train or to validate on, and where `out` is the folder itself.
    """
    data = settings.data
    if Path(out).resolve() == Path(root).resolve():
        raise InputError(f"--out {out} is the folder of the images; choose another")
    more = {"void": data.void, "classes": data.classes, "encoding": data.encoding}
    config = Config(root, share=data.share, seed=settings.train.seed, **more)
    samples = config.build()
    ready = Prepared(config, samples, tuple(_unusable(samples, skip_bad)))
    for split in ("train", VALIDATION):
        if not len(ready.part(split).build()):
            raise InputError(
                f"{root}: no image is left for {split}; training and validation need one each"
            )
    return ready


def identity(
    settings: FinetuneSettings, model: str, root: str, bad: Sequence[str]
) -> dict[str, Any]:
    """What makes a run the same run: its settings, model and files. JSON values."""
    key = {"settings": asdict(settings), "model": model, "files": digest_of(Path(root))}
    return json.loads(json.dumps({**key, "skipped": list(bad)}))


def claim(out: Path, key: dict[str, Any]) -> None:
    """Writes the identity of a run to `run.json`.

    Raises `InputError` where the folder holds a different run, and says in what it differs.
    """
    file = out / "run.json"
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if other := differences(kept, key):
            raise InputError(
                f"{out} holds another run: {'; '.join(other)}. Choose another --out or remove it"
            )
    make_folder(out)
    with atomic_write(file) as aside:
        aside.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def digest_of(root: Path) -> str:
    """A SHA-256 hash of the names, sizes and modification times of all files in a folder."""
    files = Scan(root).files  # without the folders of runs, which change
    listed = [f"{f.relative_to(root)} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def _unusable(samples: Folder, skip_bad: bool) -> list[str]:
    """Reads every sample and returns the ids of those that cannot be used.

    Raises `InputError` where there are such samples without `skip_bad`, or no others.
    """
    problems = check(samples)
    if problems and not skip_bad:
        listed = "; ".join(problem for _, problem in problems[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{len(problems)} of {len(samples)} samples cannot be used: {listed}{more}; "
            "repair them, or skip them with --skip-bad"
        )
    if len(problems) == len(samples):
        raise InputError(f"{samples.config.root} holds no sample that can be used")
    return [name for name, _ in problems]


def _in_range(
    name: str, value: float, low: float, high: float = math.inf, above: bool = False
) -> None:
    """Raises `InputError` where a value is below `low` (or equal, with `above`) or above `high`."""
    if not (low < value if above else low <= value) or not value <= high or value == math.inf:
        bound = f"{'above' if above else 'at least'} {low:g}"
        bound += "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"{name}={value}: it must be {bound}")
