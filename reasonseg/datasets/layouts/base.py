"""What layouts share: the folder that is read, what was noticed in it, and the entries they return.

Layouts read files as people have them. What they scale, turn or leave out is written down as a
remark; `data check` and `finetune` print the remarks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from reasonseg.errors import InputError
from reasonseg.structures.mask_values import Meaning, Values, mask_values, told, understand
from reasonseg.structures.placing import Frame, Placing, placing

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
SKIPPED = ("__MACOSX", "Thumbs.db", "@eaDir")  # and all names that begin with a dot
# words that name a split, with a year maybe
SPLIT = re.compile(
    r"(train|training|val|valid|validation|test|testing)[-_]?(\d{4})?", re.IGNORECASE
)
RUN_KEYS = {"settings", "model", "questions", "name"}  # of run.json, one of these
RUN = "run.json"  # of a folder that finetune, eval or annotate writes to


@dataclass(frozen=True)
class Remark:
    """Something that was noticed in a folder. `lost`: something in its files is not used."""

    text: str
    lost: bool = False


@dataclass(frozen=True)
class Entry:
    """One sample before its files are read.

    `picture` is the path of the image and `data` its bytes, where it is not a separate file.
    `masks(frame)` reads the masks, bool `[h, w]` each, as the image is shown, and `ignored(frame)`
    the pixels that are not counted. `answer` is the true answer; empty where the data has none.
    `absent`: nothing in the image matches the text. `split` is `train`, `validation` or `test`
    where the folder says so. `problem` says why the sample cannot be used.
    `results` are the (image, category) ids that COCO results give it.
    `number` tells samples with the same image and text apart.
    """

    picture: Path
    text: str
    labels: tuple[str, ...]
    masks: Callable[[Frame], list[np.ndarray]]
    answer: str = ""
    data: bytes | None = None
    ignored: Callable[[Frame], np.ndarray] | None = None
    absent: bool = False
    split: str = ""
    problem: str = ""
    results: tuple[tuple[str, str], ...] = ()
    number: int = 1


@dataclass
class Scan:
    """One reading of a folder.

    `void` and `classes` are the user's words about the values of masks, `encoding` about the text
    of files; None where the user says nothing.
    """

    root: Path
    void: tuple[int, ...] | None = None
    classes: Mapping[int, str] | None = None
    encoding: str | None = None
    remarks: dict[Remark, None] = field(default_factory=dict)
    _files: list[Path] | None = None
    _pictures: dict[str, list[Path]] = field(default_factory=dict)
    _beside: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)

    def say(self, text: str, lost: bool = False) -> None:
        """Writes down a remark, once."""
        self.remarks[Remark(text, lost)] = None

    @property
    def files(self) -> list[Path]:
        """All files of the folder, sorted.

        What operating systems leave is skipped, and so are the folders of runs (`run.json`).
        """
        if self._files is None:
            every = sorted(self.root.rglob("*"))
            runs = {f.parent for f in every if f.name == RUN and _is_run(f)} - {self.root}
            self._files = [
                file
                for file in every
                if not left_by_system(file.relative_to(self.root))
                and not runs.intersection(file.parents)
                and file.is_file()
            ]
            for file in self._files:
                if file.suffix.lower() in PICTURES:
                    self._pictures.setdefault(file.name.lower(), []).append(file)
        return self._files

    @property
    def beside(self) -> dict[tuple[Path, str], list[Path]]:
        """The files by folder and name without ending."""
        if not self._beside:
            for file in self.files:
                self._beside.setdefault((file.parent, file.stem), []).append(file)
        return self._beside

    def ending(self, *suffixes: str, under: Path | None = None) -> list[Path]:
        """The files whose names end so (in any case), below `under` or anywhere."""
        return [
            file
            for file in self.files
            if file.suffix.lower() in suffixes and (under is None or file.is_relative_to(under))
        ]

    def picture(self, name: str, *near: Path, subset: str = "") -> Path:
        """The image file that a data set calls `name`, a path in the style of any system.

        It is looked for in the folders `near`, then by its name anywhere in the folder; `subset`
        decides between several. Where there is none, a path that does not exist is returned. Raises
        `InputError` where several fit.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        for folder in near:
            path = Path(os.path.normpath(folder / wanted))
            if is_file(path):
                return path
        _ = self.files
        same = self._pictures.get(wanted.name.lower(), [])
        tails = [len(_common_tail(file.parts, wanted.parts)) for file in same]
        best = [file for file, tail in zip(same, tails, strict=True) if tail == max(tails)]
        of_subset = [file for file in best if subset and subset in file.parts[:-1]]
        best = of_subset or best
        split = split_of(subset)
        best = [f for f in best if not split or split_in(f, self.root) in ("", split)]
        if len(best) > 1:
            raise InputError(
                f"{name} may be {' or '.join(str(f) for f in best[:3])}; write its folder too"
            )
        if not best:
            return (near[0] if near else self.root) / wanted.name
        if max(tails) < len([part for part in wanted.parts if part not in ("/", ".", "..")]):
            self.say(f"{name} is not there; {best[0]} is taken for it", lost=True)
        return best[0]

    def text(self, file: Path) -> str:
        """The text of a file: UTF-8, or what the user says, or GBK where all of it fits.

        Raises `InputError` naming the byte that does not fit.
        """
        data = file.read_bytes()
        try:
            wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
            return data.decode(self.encoding or ("utf-16" if wide else "utf-8-sig"))
        except LookupError:
            raise InputError(f"data.encoding: there is no encoding {self.encoding!r}") from None
        except UnicodeDecodeError as error:
            wrong = (
                f"{file} is not {error.encoding}: byte 0x{data[error.start]:02x} at {error.start}"
            )
            if self.encoding is None and (text := _as_gbk(data)) is not None:
                self.say(f"{wrong}; it is read as GBK. If it is not: data.encoding=NAME")
                return text
            raise InputError(f"{wrong}; say its encoding, such as data.encoding=gbk") from None

    def json(self, file: Path, lost: bool = True) -> Any:
        """The values of a JSON file; None, with a remark, where it cannot be read."""
        try:
            return json.loads(self.text(file))
        except InputError as error:
            self.say(f"left out: {error}", lost)
        except (ValueError, RecursionError) as error:
            self.say(f"left out: {file} is not valid JSON: {str(error)[:120]}", lost)
        except OSError as error:
            self.say(f"left out: {file} cannot be read: {error.strerror}", lost)
        return None

    def meaning(
        self, files: list[tuple[Any, str]], names: Mapping[int, str], place: str
    ) -> Meaning:
        """What the values of masks mean: (source, name) of each; `names` are those of the folder.

        A remark says what was understood. Masks that cannot be read are skipped here: the error is
        raised when the mask is read. Raises `InputError` where no rule fits.
        """
        found = Values()
        for source, name in files:
            try:
                found.add(*mask_values(source, name=name))
            except InputError:
                continue
        if not found.pixels:
            return Meaning()
        meaning = understand(found, place, self.classes or names or None, self.void)
        left = set(found.pixels) - set(meaning.classes) - meaning.void - {0}
        self.say(told(found, meaning, place), lost=bool(meaning.classes) and bool(left))
        return meaning

    def placing(self, annotated: tuple[int, int] | None, frame: Frame, place: str) -> Placing:
        """How an annotation lies on its image; a remark says where it is scaled or turned."""
        return placing(annotated, frame, place, self.say)

    def placed(self, mask: np.ndarray, frame: Frame, place: str) -> np.ndarray:
        """A mask `[h, w]` of any type and size, as its image is shown."""
        return self.placing((mask.shape[0], mask.shape[1]), frame, place).mask(mask)


def left_by_system(path: Path) -> bool:
    """Whether an operating system or an editor left a file, by its relative path."""
    return any(part.startswith(".") or part in SKIPPED for part in path.parts)


def is_file(path: Path) -> bool:
    """Whether a path is a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _common_tail(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    """The last parts that two paths share, in any case."""
    count = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x.lower() != y.lower():
            break
        count += 1
    return a[len(a) - count :]


def _as_gbk(data: bytes) -> str | None:
    """The text of bytes in GBK; None where a byte above 127 stands alone, as in Latin-1."""
    run = 0
    for byte in data:
        if byte > 127:
            run += 1
        elif run % 2:
            return None
        else:
            run = 0
    try:
        return data.decode("gb2312") if run % 2 == 0 else None
    except UnicodeDecodeError:
        return None


def split_of(name: str) -> str:
    """The split that a name says, such as `train2017` or `valid`: `train`, `validation`, `test`."""
    found = SPLIT.fullmatch(name)
    if found is None:
        return ""
    start = found[1].lower()
    return "train" if start[:2] == "tr" else "test" if start[:2] == "te" else "validation"


def split_in(file: Path, root: Path) -> str:
    """The split that the folders of a file below `root` say, the innermost first."""
    folders = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    return next((split for part in reversed(folders) if (split := split_of(part))), "")


def _is_run(file: Path) -> bool:
    """Whether a `run.json` is that of a run, and not an annotation of an image called run."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and bool(RUN_KEYS & tree.keys()) and "shapes" not in tree


def size_of(height: Any, width: Any, place: str) -> tuple[int, int] | None:
    """The size (height, width) that a file gives; None where it gives none.

    Raises `InputError` for values that are no sizes.
    """
    if height is None or width is None or (height == 0 and width == 0):
        return None
    try:
        numbers = float(height), float(width)
    except (TypeError, ValueError, OverflowError):
        numbers = -1.0, -1.0
    if not all(n == int(n) if 0 < n < 2**31 else False for n in numbers):
        raise InputError(f"{place}: height {height!r} and width {width!r} are no size in pixels")
    return int(numbers[0]), int(numbers[1])


def key_of(value: Any) -> str | None:
    """An id as text, so that 1 and "1" are the same; None where it is no id."""
    if isinstance(value, float) and value == value and abs(value) < 2**53 and value == int(value):
        value = int(value)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
