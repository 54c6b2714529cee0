"""The documentation: links lead somewhere, commands parse, examples run, words are plain."""

import re
import shlex
from pathlib import Path

import pytest

from reasonseg.cli.main import read_arguments

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
]
COMMANDS = [
    (page, line)
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("reasonseg ")
]
PYTHON = [
    (page, number, code)
    for page in PAGES
    for number, (skip, code) in enumerate(
        re.findall(
            r"(<!-- skip -->\n+)?```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S
        )
    )
    if not skip and page.name != "README.md"  # whose example has a test of its own
]
PRIVATE = ("heard", "taught", "second looks", "mouth", "tongue", "the corridor", "moves the line")


def name_of(value):
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else None


def test_there_is_something_to_check():
    assert len(PAGES) > 25 and len(COMMANDS) > 50 and len(PYTHON) >= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page, line", COMMANDS, ids=lambda v: name_of(v) or v)
def test_commands_parse(page, line):
    read_arguments(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page, number, code", PYTHON, ids=lambda v: name_of(v) or "")
def test_examples_run(page, number, code, tmp_path, monkeypatch):
    for path in ("reasonseg", "configs"):
        (tmp_path / path).symlink_to(ROOT / path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{page.name}, example {number}", "exec"), {"__name__": "example"})


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "recipes" not in p.parts and p.name != "CHANGELOG.md"], ids=name_of
)
def test_words_are_the_fields(page):
    text = page.read_text(encoding="utf-8").lower()
    assert not [word for word in PRIVATE if re.search(rf"\b{word}\b", text)]


def test_every_page_is_in_the_site():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert not [p for p in pages if p not in listed]


def test_every_command_has_its_options_in_the_reference():
    from reasonseg.cli.main import commands

    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert not [c.name for c in commands("ask") if f"reasonseg {c.name}" not in text]
