"""The README's commands, run."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from reasonseg.cli.main import main, read_arguments

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("reasonseg ")
]
MADE = "out/mine/model"  # by a command that is too slow to run here
QUICK = [
    c
    for c in COMMANDS
    if c[1] in ("ask", "bank", "scenes", "show", "doctor")
    and MADE not in c
    and not any("://" in word for word in c)  # a server that runs nowhere
]


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 8 and len(QUICK) >= 4


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_parses(command):
    read_arguments(command[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes):
    """What the commands name: the package, a photo, an example with its mask."""
    place = tmp_path_factory.mktemp("readme")
    for path in ("reasonseg", "configs"):
        (place / path).symlink_to(ROOT / path)
    for name, sample in (("photo.jpg", scenes[0]), ("example.jpg", scenes[1])):
        Image.fromarray(sample.query.image).save(place / name)
    Image.fromarray(scenes[1].truth.masks[0]).save(place / "example-mask.png")
    return place


@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_quick_commands_run(command, font, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(command[1:]) == 0


def test_make_words_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in re.findall(r"make (\w+)", TEXT):
        assert re.search(rf"^{word}:", makefile, re.M), word


def test_the_python_example_runs(scenes, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    assert "from_pretrained" in code
    Image.fromarray(scenes[0].query.image).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "show", lambda self: None)
    names = {"files": ["photo.jpg"]}
    exec(code, names)
    assert len(names["answers"]) == 1


def test_the_table_is_what_the_model_card_says():
    card = (ROOT / "reasonseg" / "assets" / "tiny" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (?:name|attribute|relation|compare|function|multi|absent|novel) .*$", TEXT, re.M
    )
    assert len(rows) == 8 and all(row in card for row in rows)
