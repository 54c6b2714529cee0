"""A folder of one's own images and masks, in any of the layouts people have.

- COCO: a .json with images, annotations and categories; pictures beside it or under `images/`
- LabelMe or ReasonSeg: X.json beside X.jpg
- pairs: `images/` and `masks/`, the masks PNGs of the same name (binary or indexed), or a folder of them for each label
- Hugging Face `datasets`: parquet (a hub repository's) or arrow files (`save_to_disk`) with columns `image` and `mask`, and words
  in one of `text`, `sentence`, `query`, `prompt`, `label`, `class` (none: "the thing")
- `samples.jsonl`: a line `{"image", "text", "answer"?, "masks": [png or COCO RLE, ...], "labels"?}` each

One sample for each label of an image (all its shapes together), or for each text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonseg.datasets.base import Name
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import read_image, read_mask
from reasonseg.structures.masks import from_rle
from reasonseg.structures.polygons import coco_mask, paint
from reasonseg.structures.query import Query
from reasonseg.structures.sample import Sample

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VALIDATION = "validation"
WORDS = ("text", "sentence", "query", "prompt", "label", "class")  # columns of a table that say what its mask shows
SPLITS = ("all", "train", VALIDATION, "val")
NAMES = {"folder": Name(splits=("all",))}


@dataclass(frozen=True)
class Config:
    """`split`: `all`, `train` or `validation`; a share of the images (never of the samples) is kept for validation.

    `absent`: chance of a question about a label of other images, with the true answer that it is not there.
    """

    root: str = ""
    split: str = "all"
    share: float = 0.1
    absent: float = 0.0
    seed: int = 0
    skipped: tuple[str, ...] = ()  # ids of samples to leave out

    def build(self) -> Folder:
        """The data set."""
        return Folder(self)

    def training(self, length: int, seed: int) -> Stream:
        """`length` samples in an order that is a pure function of the seed."""
        return Stream(self.build(), length, seed, self.absent)

    @classmethod
    def example(cls) -> Config | None:
        """It has none of its own: the files are the user's."""
        return None


@dataclass(frozen=True)
class Entry:
    """One sample to be: its picture, what is asked, and how its masks are read in the picture's size."""

    picture: Path
    text: str
    labels: tuple[str, ...]
    masks: Callable[[tuple[int, int]], list[np.ndarray]]
    answer: str = ""
    data: bytes | None = None  # of the picture, where it is no file of its own


class Folder:
    """Samples by index. `labels` are all the labels there are."""

    def __init__(self, config: Config):
        self.config = config
        root = Path(config.root)
        if config.split not in SPLITS:
            raise InputError(f"no split {config.split!r} of a folder; there are {', '.join(SPLITS)}")
        if not root.is_dir():
            raise InputError(f"{root} is no folder")
        entries = next((found for layout in LAYOUTS if (found := layout(root))), [])
        if not entries:
            raise InputError(
                f"{root} holds no annotated images; expected a COCO .json, LabelMe files beside pictures, "
                "images/ with masks/, samples.jsonl, or a table with columns image and mask"
            )
        self.labels = sorted({label for e in entries for label in e.labels})
        self.present: dict[Path, set[str]] = {}  # the labels of each picture, those that cannot be read among them
        for entry in entries:
            self.present.setdefault(entry.picture, set()).update(entry.labels)
        entries = [e for e in entries if self.name(e) not in config.skipped]
        kept = self._kept(entries)
        validated = config.split != "train"
        self.entries = [e for e in entries if config.split == "all" or (e.picture in kept) == validated]
        self._latest: tuple[Path, np.ndarray] | None = None

    def _kept(self, entries: list[Entry]) -> set[Path]:
        pictures = sorted({e.picture for e in entries})
        order = np.random.default_rng(self.config.seed).permutation(len(pictures))
        count = max(round(self.config.share * len(pictures)), 1) if len(pictures) > 1 else 0
        return {pictures[i] for i in order[:count]}

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, i: int) -> str:
        """The name of sample `i`: its picture and its text."""
        return self.name(self.entries[i])

    def name(self, entry: Entry) -> str:
        """The name of a sample: its picture and its text."""
        inside = entry.picture.is_relative_to(self.config.root)
        place = entry.picture.relative_to(self.config.root) if inside else entry.picture
        return f"{place.as_posix()}: {entry.text}"

    def group(self, i: int) -> str:
        """Samples on one image have the same group."""
        return str(self.entries[i].picture)

    def image(self, i: int) -> np.ndarray:
        """The picture of sample `i`; samples on one picture in a row share it, the very object."""
        path = self.entries[i].picture
        if self._latest is None or self._latest[0] != path:
            data = self.entries[i].data
            self._latest = path, read_image(path if data is None else data, name=str(path))
        return self._latest[1]

    def __getitem__(self, i: int) -> Sample:
        entry, image = self.entries[i], self.image(i)
        masks = entry.masks(image.shape[:2])
        for mask in masks:
            where = f"{entry.picture}: the mask of {entry.text!r}"
            if mask.shape != image.shape[:2]:
                raise InputError(f"{where} is {list(mask.shape)}, the image {list(image.shape[:2])}")
            if not mask.any():
                raise InputError(f"{where} is empty")
        if entry.answer and entry.answer.count("<SEG>") != len(masks):
            raise InputError(
                f"{entry.picture}: the answer to {entry.text!r} says <SEG> {entry.answer.count('<SEG>')} times "
                f"and has {len(masks)} masks"
            )
        labels = list(entry.labels) if len(entry.labels) == len(masks) else [entry.text] * len(masks)
        truth = Answer(entry.answer or said(labels), np.array(masks), np.ones(len(masks)), labels, "found")
        return Sample(Query(image, entry.text), truth, self.id(i), "")

    def refused(self, i: int, rng: np.random.Generator) -> Sample | None:
        """A question about the picture of sample `i` for a label it does not have; None where it has all."""
        others = [label for label in self.labels if label not in self.present[self.entries[i].picture]]
        if not others:
            return None
        label, image = others[rng.integers(len(others))], self.image(i)
        truth = Answer(f"The {label} <REJ>.", np.zeros((0, *image.shape[:2]), bool), np.zeros(0), [], "absent")
        return Sample(Query(image, f"the {label}"), truth, f"{self.id(i)} (absent: {label})", "absent")


class Stream:
    """Samples in epochs of their own order, with questions about what is not there mixed in; a pure function of the seed."""

    def __init__(self, samples: Folder, length: int, seed: int, absent: float):
        self.samples, self.length, self.seed, self.absent = samples, length, seed, absent
        if not len(samples):
            raise InputError(f"{samples.config.root} leaves no sample to train on")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.length:
            raise IndexError(i)
        epoch, place = divmod(i, len(self.samples))
        chosen = int(np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))[place])
        rng = np.random.default_rng([self.seed, 1, i])
        if rng.random() < self.absent and (sample := self.samples.refused(chosen, rng)):
            return sample
        return self.samples[chosen]


def said(labels: list[str]) -> str:
    """The true answer: each label with its `<SEG>`."""
    return ", ".join(f"{'the' if i else 'The'} {label} <SEG>" for i, label in enumerate(labels)) + "."


def check(samples: Folder) -> list[tuple[str, str]]:
    """(id, what is wrong) of each sample that cannot be used, by reading them all."""
    problems = []
    for i in range(len(samples)):
        try:
            _ = samples[i]
        except InputError as error:
            problems.append((samples.id(i), str(error)))
    return problems


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from None


def _coco(root: Path) -> list[Entry]:
    entries = []
    for file in sorted(root.glob("*.json")) + sorted((root / "annotations").glob("*.json")):
        tree = _json(file)
        if isinstance(tree, dict) and {"images", "annotations", "categories"} <= tree.keys():
            entries += _coco_entries(root, file, tree)
    return entries


def _coco_entries(root: Path, file: Path, tree: dict) -> list[Entry]:
    names = {c["id"]: str(c["name"]) for c in tree["categories"]}
    pictures = {i["id"]: i["file_name"] for i in tree["images"]}
    groups: dict[tuple[int, str], list[dict]] = {}
    for number, a in enumerate(tree["annotations"]):
        image, category = a.get("image_id"), a.get("category_id")
        if image not in pictures or category not in names:
            missing = f"image {image}" if image not in pictures else f"category {category}"
            raise InputError(f"{file}, annotation {a.get('id', number)}: {missing} does not exist")
        groups.setdefault((image, names[category]), []).append(a)
    entries = []
    for (image, label), members in sorted(groups.items()):
        places = (root / pictures[image], root / "images" / pictures[image])

        def masks(size, members=members):
            parts = [coco_mask(m.get("segmentation"), size, f"{file}, annotation {m.get('id')}") for m in members]
            return [np.any(parts, 0)]

        picture = next((p for p in places if p.is_file()), places[0])
        entries.append(Entry(picture, f"the {label}", (label,), masks))
    return entries


def _labelme(root: Path) -> list[Entry]:
    entries = []
    for file in sorted(root.rglob("*.json")):
        tree = _json(file)
        if not isinstance(tree, dict) or not isinstance(tree.get("shapes"), list):
            continue
        picture = next((p for p in (file.with_suffix(s) for s in PICTURES) if p.is_file()), file.with_suffix(".jpg"))
        texts = tree.get("text") or []
        labels = dict.fromkeys(str(s.get("label", "")) for s in tree["shapes"] if isinstance(s, dict))
        wanted = {t.strip(): None for t in ([texts] if isinstance(texts, str) else texts)} or {
            label: label for label in labels if label.lower() != "flag" and "ignore" not in label.lower()
        }
        for text, label in wanted.items():

            def masks(size, label=label, tree=tree, file=file):
                shapes = [s for s in tree["shapes"] if label is None or s.get("label") == label]
                return [paint([as_polygon(s, str(file)) for s in shapes], size, str(file)) == 1]

            entries.append(Entry(picture, f"the {label}" if label else text, (label or text,), masks))
    return entries


def as_polygon(shape: dict, place: str) -> dict:
    """A LabelMe shape as the polygon it stands for. Raises `InputError` for lines, points and painted masks."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind == "polygon":
        return shape
    if kind not in ("rectangle", "circle") or not isinstance(points, list) or len(points) != 2:
        raise InputError(f"{place}: a shape is a {kind}; draw polygons, rectangles or circles")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return {**shape, "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
    radius, turn = np.hypot(x1 - x0, y1 - y0), np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return {**shape, "points": np.stack([x0 + radius * np.cos(turn), y0 + radius * np.sin(turn)], 1).tolist()}


def _pairs(root: Path) -> list[Entry]:
    pictures = {p.stem: p for p in sorted((root / "images").glob("*")) if p.suffix.lower() in PICTURES}
    names = _json(root / "labels.json") if (root / "labels.json").is_file() else {}
    flat = [file for file in sorted((root / "masks").glob("*.png"))]
    classes = _classes({file: file for file in flat}, bool(names))
    entries = []
    for file in sorted((root / "masks").rglob("*.png")):
        if file.stem not in pictures:
            raise InputError(f"{file} has no picture of its name in {root / 'images'}")
        label = "" if file.parent == root / "masks" else file.parent.name
        for value in classes.get(file, [None]):
            name = label or names.get(str(value)) or ("thing" if value is None else f"class {value}")

            def masks(size, file=file, value=value):
                return [_marked(file) if value is None else np.asarray(Image.open(file)) == value]

            entries.append(Entry(pictures[file.stem], f"the {name}", (name,), masks))
    return entries


def _classes(files: dict[Any, Any], named: bool) -> dict[Any, list[int]]:
    """The classes in each of a data set's masks (paths or open files, by any key) where they are indexed; nothing where binary.

    They are indexed if `labels.json` names them, or if they have palettes or few and small values, more than one in all.
    """
    found: dict[Any, list[int]] = {}
    palettes = False
    for key, file in files.items():
        try:
            with Image.open(file) as picture:
                palettes |= picture.mode == "P"
                if picture.mode in ("P", "L"):
                    found[key] = [int(v) for v in np.unique(np.asarray(picture)) if v not in (0, 255)]
        except OSError:
            continue  # it is named when it is read
    values = {v for each in found.values() for v in each}
    indexed = named or (len(values) > 1 and (palettes or (len(values) <= 32 and max(values) < 64)))
    return {key: each for key, each in found.items() if each} if indexed else {}


def _marked(file: Path) -> np.ndarray:
    """A binary mask: what is at least half bright, or not 0 where its values are 0 and 1."""
    with Image.open(file) as picture:
        values = np.asarray(picture) if picture.mode in ("L", "I", "I;16") else None
    return read_mask(file) if values is None or values.max() <= 1 else values >= (int(values.max()) + 1) // 2


def _lines(root: Path) -> list[Entry]:
    file = root / "samples.jsonl"
    if not file.is_file():
        return []
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            picture, text, given = root / row["image"], str(row["text"]), list(row["masks"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: expected image, text and masks ({error!r})") from None

        def masks(size, given=given):
            return [from_rle(m) if isinstance(m, dict) else read_mask(root / m) for m in given]

        entries.append(Entry(picture, text, tuple(row.get("labels") or ()), masks, row.get("answer", "")))
    return entries


def _tables(root: Path) -> list[Entry]:
    files = sorted(f for pattern in ("*.parquet", "*.arrow") for f in root.rglob(pattern))
    names = _json(root / "labels.json") if files and (root / "labels.json").is_file() else {}
    return [entry for file in files for entry in _rows(file, names)]


def _rows(file: Path, names: dict) -> list[Entry]:
    """Entries of a table with pictures and masks; none where it has no such columns.

    Without a column of words, masks may be indexed; `names` are those of the classes.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{file} needs pyarrow: pip install 'reasonseg[train]'") from None
    try:
        table = (
            pq.read_table(file)
            if file.suffix == ".parquet"
            else pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a table that can be read: {str(error)[:160]}") from None
    if not {"image", "mask"} <= set(table.column_names):
        return []
    words = next((name for name in WORDS if name in table.column_names), None)
    shown: dict[bytes, Path] = {}  # questions on one picture share it
    found: dict[tuple[Path, str], list[tuple[bytes, int | None]]] = {}
    data: dict[Path, bytes] = {}
    rows = [
        tuple(_bytes(row[c], f"{file}, row {n}, {c}") for c in ("image", "mask"))
        for n, row in enumerate(table.to_pylist())
    ]
    said = table[words].to_pylist() if words else [None] * len(rows)
    classes = {} if words else _classes({n: io.BytesIO(mask) for n, (_, mask) in enumerate(rows)}, bool(names))
    for number, (picture, mask) in enumerate(rows):
        name = shown.setdefault(picture, file.with_suffix("") / str(number))
        data[name] = picture
        for value in classes.get(number, [None]):
            label = "thing" if value is None else names.get(str(value), f"class {value}")
            label = said[number].strip() if isinstance(said[number], str) else label
            found.setdefault((name, label), []).append((mask, value))

    def entry(name: Path, label: str, given: list[tuple[bytes, int | None]]) -> Entry:
        asked = label if len(label.split()) > 3 else f"the {label}"
        masks = lambda _: [np.any([_of_class(m, value, f"a mask of {name}") for m, value in given], 0)]  # noqa: E731
        return Entry(name, asked, (label,), masks, data=data[name])

    return [entry(name, label, given) for (name, label), given in found.items()]


def _of_class(mask: bytes, value: int | None, name: str) -> np.ndarray:
    """Where a mask is one class of several, or (None) anything."""
    return read_mask(mask, name=name) if value is None else np.asarray(Image.open(io.BytesIO(mask))) == value


def _bytes(cell: Any, place: str) -> bytes:
    """The bytes of an image as `datasets` keeps it: itself, or under `bytes`."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(found, bytes):
        raise InputError(f"{place}: no bytes of an image file; save the data set with its images embedded")
    return found


LAYOUTS = (_lines, _coco, _pairs, _labelme, _tables)
