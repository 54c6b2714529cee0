"""One file and no other edit: a throw-away kind of every room, added by another package and used
from the command line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reasonseg import InputError
from reasonseg.cli.main import main
from reasonseg.config import kinds as finder
from reasonseg.config.kinds import DOORS, config_class, kind_module, kinds
from reasonseg.config.schema import dump
from reasonseg.nn.pretrained import EMBEDDED

ADDED = {
    "added_decoder": (
        "reasonseg.decoders",
        "blunt",
        """
from dataclasses import dataclass
from reasonseg.decoders import sam

@dataclass(frozen=True)
class Config(sam.Config):
    '''SAM whose logits are halved.'''
    takes, model_types = ("tokens",), ("nothing",)

    def build(self):
        found = super().build()
        return Blunt(found.model, found.pixels)

    @staticmethod
    def load(folder, allow=(), **options):
        found = sam.Config.load(folder, allow, **options)
        return Blunt(found.model, found.pixels)

class Blunt(sam.SamDecoder):
    def decode(self, features, image_index, prompt):
        logits, scores = super().decode(features, image_index, prompt)
        return logits / 2, scores
""",
    ),
    "added_backbone": (
        "reasonseg.backbones",
        "polite",
        """
from dataclasses import dataclass
from reasonseg.backbones import llava

@dataclass(frozen=True)
class Config(llava.Config):
    '''LLaVA that says please.'''
    def build(self):
        found = super().build()
        return Polite(found.model, found.tokenizer, found.pixels, self)

    def load(self, folder, allow=(), **options):
        found = super().load(folder, allow, **options)
        return Polite(found.model, found.tokenizer, found.pixels, self)

class Polite(llava.Llava):
    def decode(self, ids):
        return "Please: " + super().decode(ids)
""",
    ),
    "added_prompter": (
        "reasonseg.prompters",
        "plain",
        """
from dataclasses import dataclass
from torch import nn
from reasonseg.nn.prompt import Prompt
from reasonseg.prompters import seg_token

@dataclass(frozen=True)
class Config(seg_token.Config):
    '''One linear map.'''
    def build(self):
        return Plain(self)

class Plain(seg_token.SegToken):
    def __init__(self, config):
        super().__init__(config)
        self.mlp = nn.Linear(config.width_in, config.width_out)
""",
    ),
    "added_segmenter": (
        "reasonseg.segmenters",
        "signed",
        """
from dataclasses import dataclass
from reasonseg.segmenters.embedding import EmbeddingSegmenter

@dataclass(frozen=True)
class Config:
    '''Signs its answers.'''
    name: str = "nobody"

    def build(self, parts):
        return Signed(parts)

class Signed(EmbeddingSegmenter):
    def batch(self, queries, **options):
        answers = super().batch(queries, **options)
        for answer in answers:
            answer.meta["signed"] = self.settings.segmenter.config.name
        return answers
""",
    ),
    "added_format": (
        "reasonseg.checkpoints.released",
        "pointer",
        """
from reasonseg.checkpoints.folder import load
from reasonseg.checkpoints.released.base import Format

def recognise(place):
    file = place / "pointer.txt"
    return file if file.is_file() else None

def read(file, options):
    return load(file.read_text(), device="cpu")

FORMAT = Format("a pointer to a packaged model", recognise, read)
""",
    ),
    "added_command": (
        "reasonseg.cli",
        "hello",
        """
from reasonseg.cli.options import Command

COMMANDS = (Command("hello", "say hello", "Says hello.", lambda parser: parser.add_argument("name"),
                    lambda options: print("hello", options.name)),)
""",
    ),
    "added_data": (
        "reasonseg.datasets",
        "squares",
        """
from dataclasses import dataclass
import numpy as np
from reasonseg import Answer, Query, Sample

@dataclass(frozen=True)
class Config:
    '''White squares on grey.'''
    root: str = ""
    split: str = "val"
    count: int = 3

    def build(self):
        return Squares(self)

    def training(self, length, seed):
        return Squares(Config(count=length))

class Squares:
    def __init__(self, config):
        self.config = config

    def __len__(self):
        return self.config.count

    def id(self, i):
        return f"square-{i}"

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        image, mask = np.full((40, 40, 3), 90, np.uint8), np.zeros((40, 40), bool)
        mask[5 + i % 9 : 25, 10:30] = True
        image[mask] = 255
        truth = Answer("The square <SEG>.", mask[None], [1], ["square"], "found")
        return Sample(Query(image, "the square"), truth, self.id(i))
""",
    ),
}
OBJECTIVE = """
from reasonseg.training.objectives.language import Language

class Doubled(Language):
    '''Twice the loss.'''
    def __init__(self, segmenter, times: float = 2.0):
        super().__init__(segmenter)
        self.times = times

    def forward(self, batch, counts=None):
        parts = super().forward(batch, counts)
        return {**parts, "loss": self.times * parts["loss"]}

OBJECTIVE = Doubled
"""


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A folder as `pip install` would leave it: modules, and a dist-info that names them as
    entry points.
    """
    site = tmp_path_factory.mktemp("site")
    groups: dict[str, list[str]] = {}
    for module, (group, name, text) in ADDED.items():
        (site / f"{module}.py").write_text(text, encoding="utf-8")
        groups.setdefault(group, []).append(f"{name} = {module}")
    (site / "my_objective.py").write_text(OBJECTIVE, encoding="utf-8")
    info = site / "added-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: added\nVersion: 1.0\n", encoding="utf-8"
    )
    lines = [f"[{group}]\n" + "\n".join(names) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return site


@pytest.fixture
def installed(added, monkeypatch):
    monkeypatch.syspath_prepend(str(added))
    return added


def test_every_room_lists_what_is_added(installed):
    for _, (group, name, _) in ADDED.items():
        room = group.removeprefix("reasonseg.")
        assert name in kinds(room) and hasattr(kind_module(room, name), DOORS[room])
    assert not {name for _, name, _ in ADDED.values()} & set(finder.files("decoders"))


@pytest.fixture(scope="module")
def trained(added, tmp_path_factory):
    """A fresh model of added parts, trained for two steps with an added objective on an added
    data set, in a process of its own.
    """
    out = tmp_path_factory.mktemp("trained")
    sys.path.insert(0, str(added))
    try:
        parts = {
            "backbone": {"kind": "polite", **dump(config_class("backbones", "polite").example())},
            "prompter": {"kind": "plain"},
            "decoder": {"kind": "blunt", **dump(config_class("decoders", "blunt").example())},
            "segmenter": {"kind": "signed", "name": "Ada"},
        }
    finally:
        sys.path.remove(str(added))
    stage = {"objective": "my_objective", "steps": 2, "batch": 2, "lr": 1e-3, "optimizer": "adamw"}
    stage["options"] = {"times": 3.0}
    tree = {
        "model": parts,
        "data": "squares",
        "stages": {"only": {**stage, "objective": "recipe.my_objective"}},
    }
    tree |= {"out": str(out / "run"), "workers": 0, "save_every": 2, "log_every": 1, "bf16": False}
    (out / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (out / "recipe").mkdir()
    (out / "recipe" / "my_objective.py").write_text(
        OBJECTIVE, encoding="utf-8"
    )  # found from where the command runs
    command = [sys.executable, "-m", "reasonseg.cli", "train", "run.yaml"]
    root = str(Path(finder.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(added), root])}
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / "run" / "model"


def test_a_model_of_added_parts_answers(installed, trained, tmp_path, capsys):
    picture = str(EMBEDDED.parent / "pictures" / "name.png")
    given = [
        "--model",
        str(trained),
        "--device",
        "cpu",
        "--force-seg",
        "--max-new-tokens",
        "3",
        "--json",
    ]
    assert main(["ask", picture, "the square", *given]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (
        answer["text"].startswith("Please: ")
        and answer["meta"]["signed"] == "Ada"
        and len(answer["objects"]) == 1
    )
    settings = yaml.safe_load((trained / "settings.yaml").read_text(encoding="utf-8"))
    found = {
        part: settings[part]["kind"] for part in ("backbone", "prompter", "decoder", "segmenter")
    }
    assert found == {
        "backbone": "polite",
        "prompter": "plain",
        "decoder": "blunt",
        "segmenter": "signed",
    }


def test_without_the_package_such_a_model_says_what_is_missing(trained, capsys):
    picture = str(EMBEDDED.parent / "pictures" / "name.png")
    assert main(["ask", picture, "the square", "--model", str(trained)]) == 2
    said = capsys.readouterr().err
    assert any(f"'{kind}'" in said for kind in ("polite", "blunt", "plain", "signed"))
    assert "there are" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["squares", "added_data.data"])
def test_an_added_data_set_is_evaluated(installed, tmp_path, monkeypatch, capsys, name):
    if "." in name:  # by a dotted path from where the command runs
        (tmp_path / "added_data").mkdir()
        (tmp_path / "added_data" / "data.py").write_text(ADDED["added_data"][2], encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "added_data", raising=False)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(installed)])
    assert main(["eval", name, "--device", "cpu", "--json", "--out", str(tmp_path / "out")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (
        summary["teacher_forced"]["n"] == summary["generated"]["n"] == 3 and summary["errors"] == 0
    )
    assert (
        main(["data", "check", name, "--root", str(tmp_path), "--out", str(tmp_path / "drawn")])
        == 0
    )
    assert "3 samples on 3 pictures" in capsys.readouterr().out


def test_an_added_format_is_read_wherever_models_are(installed, tmp_path, capsys):
    (tmp_path / "pointer.txt").write_text("tiny", encoding="utf-8")
    assert main(["show", "model", "--model", str(tmp_path), "--device", "cpu"]) == 0
    assert "SamModel" in capsys.readouterr().out
    assert main(["import", str(tmp_path), str(tmp_path / "ours")]) == 0
    assert (tmp_path / "ours" / "settings.yaml").is_file()


def test_an_added_command_runs_and_is_listed(installed, capsys):
    assert main(["hello", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "say hello" in capsys.readouterr().out


@pytest.mark.parametrize(
    "room, kind, said",
    [
        ("decoders", "samm", "did you mean 'sam'"),
        ("datasets", "fold", "did you mean 'folder'"),
        ("decoders", "os.path", "no decoder 'os.path'"),  # a saved model names no module
        ("training.objectives", "dense", "recipes.embedded.patches"),
        ("datasets", "os.path", "defines no Config"),
        ("training.objectives", "nowhere.at.all", "cannot be imported"),
    ],
)
def test_what_is_no_kind_is_said(room, kind, said):
    with pytest.raises(InputError, match=said):
        kind_module(room, kind, "here")
