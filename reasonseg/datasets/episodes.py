"""Few-shot episodes: segment an object in an image, given reference images with its masks.

PASCAL-5i, COCO-20i and FSS-1000 in their usual layouts and folds, and drawn scenes. Episode i has
the same query image and the same first references for every number of shots, so that differences
between runs are paired. Classes seen in training and withheld classes are separate groups.

Under `root`: `VOC2012/{JPEGImages,SegmentationClassAug}` or
`COCO2014/{train2014,val2014,annotations}` (PNGs whose value is the class) with the class lists of
PFENet, BAM and VLP-SAM, `splits/lists/{pascal,coco}/fss_list/{train,val}/
sub_class_file_list_F.txt`; or for FSS-1000 a folder of `1.jpg`, `1.png` ... `10.png` for each
class.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from reasonseg.datasets.base import Name
from reasonseg.datasets.synthetic.drawing import Scene
from reasonseg.datasets.synthetic.families import company, draw_alike, union_of
from reasonseg.datasets.synthetic.knowledge import Knowledge
from reasonseg.datasets.synthetic.sprites import Sprite, default_pack, load_pack
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import open_image, read_image, read_values
from reasonseg.structures.query import Query, Reference
from reasonseg.structures.sample import Sample

GROUPS = ("withheld", "seen")
BOUNDARY = 255  # in PASCAL's masks: neither object nor background
FOLDS = 4
MAX_TRIES = 20
PASCAL = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,"
    "person,potted plant,sheep,sofa,train,tv/monitor"
).split(",")
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
).split(",")
NAMES: dict[str, Name] = {}  # `eval episodes` has its own report


EPISODES, PER_CLASS = 1000, 20  # at least, where no count is given


@dataclass(frozen=True)
class Config:
    """Settings of the episodes.

    `prompt` is what the model gets: `reference` (reference images only), `label` (the class name as
    text only) or `both`. `group` is the group of classes; `count` the number of episodes, 0
    for 1000 or 20 a class, whichever is more; `size`
    the longer side of drawn scenes in pixels; `sprites` the folder of a sprite pack. Raises
    `InputError` where `fold` or `shots` is out of range.
    """

    root: str = ""
    benchmark: Literal["scenes", "pascal", "coco", "fss"] = "scenes"
    fold: int = 0
    shots: int = 1
    prompt: Literal["reference", "label", "both"] = "reference"
    group: Literal["withheld", "seen"] = "withheld"
    count: int = 0
    seed: int = 0
    size: int = 336
    sprites: str = ""

    def __post_init__(self):
        if not 0 <= self.fold < FOLDS:
            raise InputError(f"fold: {self.fold} is not 0 to {FOLDS - 1}")
        if self.shots < 1:
            raise InputError(f"shots: {self.shots} is not above 0")

    def build(self) -> Episodes:
        """The data set. Raises `InputError` where files are missing or malformed."""
        return Episodes(self)

    def training(self, length: int, seed: int) -> Episodes:
        """`length` training episodes of the group, a pure function of the seed."""
        return replace(self, count=length, seed=seed).build()

    @classmethod
    def example(cls) -> Config:
        """A small data set, for tests."""
        return cls(count=4, shots=2, size=96)


class Episodes:
    """Episodes by index; `labels` are the classes of the group. An empty group has length 0."""

    def __init__(self, config: Config):
        self.config = config
        self.source = SOURCES[config.benchmark](config)
        self.labels = self.source.labels

    def __len__(self) -> int:
        least = max(EPISODES, PER_CLASS * len(self.labels))
        return (self.config.count or least) if self.labels else 0

    def id(self, i: int) -> str:
        """The name of episode `i`."""
        return f"{self.config.benchmark}-{self.config.fold}-{self.config.group}-{i}"

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(i)
        config = self.config
        label, query, shown = self.source.episode(
            i, 0 if config.prompt == "label" else config.shots
        )
        named = label if config.prompt != "reference" else None
        references = [Reference(image, mask=mask == 1, label=named) for image, mask in shown]
        image, mask = query
        text = f"Segment the {label}." if config.prompt == "label" else ""
        truth = Answer("", (mask == 1)[None], np.ones(1), [label], "found")
        ignored = mask == BOUNDARY
        sample = Query(image, text, references=references)
        return Sample(sample, truth, self.id(i), config.group, ignored if ignored.any() else None)


class DrawnEpisodes:
    """Episodes of drawn scenes, in which the object stands among others.

    Every copy of the object has its own hue, rotation and size.
    """

    def __init__(self, config: Config):
        self.config, knowledge = config, Knowledge.load()
        self.sprites = load_pack(config.sprites) if config.sprites else default_pack(knowledge)
        withheld = [s for s in self.sprites if config.sprites or knowledge.withheld(s.name)]
        self.group = (
            withheld
            if config.group == "withheld"
            else [s for s in self.sprites if s not in withheld]
        )
        self.labels = [s.name for s in self.group]

    def episode(self, i: int, shots: int) -> tuple[str, tuple, list[tuple]]:
        """(label, (image, mask), references); masks are uint8 `[h, w]` with 1 on the object."""
        seeds = [self.config.seed, 91, GROUPS.index(self.config.group), i]
        sprite = self.group[np.random.default_rng(seeds).integers(len(self.group))]
        query = self._picture([*seeds, 0], sprite, copies=2)
        return (
            sprite.name,
            query,
            [self._picture([*seeds, k + 1], sprite, copies=1) for k in range(shots)],
        )

    def _picture(
        self, seeds: list[int], sprite: Sprite, copies: int
    ) -> tuple[np.ndarray, np.ndarray]:
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng([*seeds, attempt])
            chosen = [sprite] * int(rng.integers(1, copies + 1)) + company(
                rng, sprite, self.sprites, 1, 3
            )
            scene: Scene = draw_alike(
                rng, [chosen[k] for k in rng.permutation(len(chosen))], self.config.size
            )
            mask = union_of(scene, sprite)
            if mask.any():
                return scene.image, mask.astype(np.uint8)
        raise InputError(
            f"{sprite.name} was covered by others in {MAX_TRIES} scenes; check that its "
            "cut-out is not empty"
        )


class FoldEpisodes:
    """Episodes of PASCAL-5i and COCO-20i.

    Withheld classes are the validation classes of the fold; seen classes are the others, from the
    training list.
    """

    def __init__(self, config: Config):
        self.config, names = config, PASCAL if config.benchmark == "pascal" else COCO
        self.root = Path(config.root)
        per_fold = len(names) // FOLDS
        if config.benchmark == "pascal":
            withheld = list(range(config.fold * per_fold, (config.fold + 1) * per_fold))
        else:
            withheld = list(range(config.fold, len(names), FOLDS))
        wanted = (
            withheld
            if config.group == "withheld"
            else [c for c in range(len(names)) if c not in withheld]
        )
        part = "val" if config.group == "withheld" else "train"
        lists = self._lists(part)
        self.files = {
            names[c]: (c + 1, lists[c + 1]) for c in wanted if len(lists.get(c + 1, [])) > 1
        }
        self.labels = list(self.files)

    def _lists(self, part: str) -> dict[int, list[tuple[str, str]]]:
        inside = Path(
            "splits/lists",
            self.config.benchmark,
            "fss_list",
            part,
            f"sub_class_file_list_{self.config.fold}.txt",
        )
        for place in (self.root / inside, self.root / "data" / inside):
            if place.is_file():
                try:
                    return {
                        int(k): [(str(a), str(b)) for a, b in v]
                        for k, v in ast.literal_eval(place.read_text(encoding="utf-8")).items()
                    }
                except (ValueError, SyntaxError, TypeError, AttributeError) as error:
                    raise InputError(
                        f"{place} is no class list ({{class: [(image, mask), ...]}}): {error}"
                    ) from None
        raise InputError(
            f"{self.root / inside} does not exist; it lists the {part} images of each class "
            "(PFENet's, BAM's or VLP-SAM's lists)"
        )

    def episode(self, i: int, shots: int) -> tuple[str, tuple, list[tuple]]:
        """(label, (image, mask), references).

        Masks are uint8 `[h, w]` with 1 on the object and 255 on pixels that no score counts. Raises
        `InputError` where a class has too few images.
        """
        rng = np.random.default_rng([self.config.seed, 92, GROUPS.index(self.config.group), i])
        label = self.labels[rng.integers(len(self.labels))]
        value, files = self.files[label]
        order = rng.permutation(len(files))
        if shots >= len(files):
            raise InputError(
                f"{label} has {len(files)} images; {shots} shots and a query need {shots + 1}"
            )
        return (
            label,
            self._read(files[order[0]], value),
            [self._read(files[order[k + 1]], value) for k in range(shots)],
        )

    def _read(self, files: tuple[str, str], value: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = (self._place(name) for name in files)
        values = read_values(mask)
        picture = read_image(image)
        if values.shape != picture.shape[:2]:
            raise InputError(f"{mask} is {list(values.shape)}, its image {list(picture.shape[:2])}")
        boundary = (values == BOUNDARY) & (self.config.benchmark == "pascal")
        return picture, np.where(boundary, BOUNDARY, values == value).astype(np.uint8)

    def _place(self, name: str) -> Path:
        """The path of a listed file below the root; the lists may have another root."""
        parts = Path(name).parts
        names = {"VOC2012": "VOC2012", "COCO2014": "COCO2014", "MSCOCO2014": "COCO2014"}
        start = next((k for k, part in enumerate(parts) if part in names), 0)
        inside = Path(
            names.get(parts[start], parts[start]), *(p for p in parts[start + 1 :] if p != "..")
        )
        for place in (self.root / inside, self.root / "Datasets_HSN" / inside):
            if place.is_file():
                return place
        raise InputError(f"{self.root / inside} does not exist, but a class list names it")


class FolderEpisodes:
    """Episodes of FSS-1000, which has one folder per class.

    Withheld classes are those of `splits/fss/test.txt` where that file exists, else all.
    """

    def __init__(self, config: Config):
        self.config = config
        root = Path(config.root)
        root = root / "FSS-1000" if (root / "FSS-1000").is_dir() else root
        if not root.is_dir():
            raise InputError(f"{root} is no folder; FSS-1000 has one folder per class")
        listed = next(
            (
                p
                for p in (root / "splits/fss/test.txt", root.parent / "splits/fss/test.txt")
                if p.is_file()
            ),
            None,
        )
        every = sorted(d.name for d in root.iterdir() if len(list(d.glob("*.png"))) > 1)
        test = set(listed.read_text(encoding="utf-8").split()) if listed else set(every)
        self.root = root
        self.labels = [name for name in every if (name in test) == (config.group == "withheld")]

    def episode(self, i: int, shots: int) -> tuple[str, tuple, list[tuple]]:
        """(label, (image, mask), references); masks are uint8 `[h, w]` with 1 on the object."""
        rng = np.random.default_rng([self.config.seed, 93, GROUPS.index(self.config.group), i])
        name = self.labels[rng.integers(len(self.labels))]
        files = sorted((self.root / name).glob("*.png"))
        if shots >= len(files):
            raise InputError(
                f"{name} has {len(files)} images; {shots} shots and a query need {shots + 1}"
            )
        pairs = [self._read(files[k]) for k in rng.permutation(len(files))[: shots + 1]]
        return name.replace("_", " "), pairs[0], pairs[1:]

    def _read(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        picture = read_image(file.with_suffix(".jpg"))
        with open_image(file) as opened:
            mask = np.array(opened.convert("L")) > 127
        if mask.shape != picture.shape[:2]:
            raise InputError(f"{file} is {list(mask.shape)}, its image {list(picture.shape[:2])}")
        return picture, mask.astype(np.uint8)


SOURCES = {
    "scenes": DrawnEpisodes,
    "pascal": FoldEpisodes,
    "coco": FoldEpisodes,
    "fss": FolderEpisodes,
}
