"""Every command with every packaged model: it works, or says in one line with exit code 2 what
this model cannot do.
"""

import io
import json

import pytest
from small_data import pairs

from reasonseg.cli.main import main, read_arguments
from reasonseg.nn.pretrained import EMBEDDED, PACKAGED

PICTURES = EMBEDDED.parent / "pictures"
IMAGE = str(PICTURES / "name.png")
WORKS, REFUSED = 0, 2
SMALL = ("tiny", "tiny-seggpt")
# `photo` takes seconds for each: one case of each kind
WITH_PHOTO = ("ask in words", "ask by box", "ask by both", "ask quantized", "finetune")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set of one's own, which is a bank too."""
    return str(pairs(tmp_path_factory.mktemp("data")))


def ask(folder, *words):
    return ["ask", IMAGE, *words]


def shown(folder):
    mask = next(iter(sorted((__import__("pathlib").Path(folder) / "masks").rglob("*.png"))))
    image = (
        next(p for p in (mask.parents[1] / "images", mask.parents[2] / "images") if p.is_dir())
        / mask.name
    )
    return ["--ref", str(image), "--ref-mask", str(mask)]


# command line -> exit codes of (tiny, tiny-seggpt)
CASES = {
    "ask in words": (lambda d, out: ask(d, "the cup"), WORKS, REFUSED),
    "ask by box": (lambda d, out: ask(d, "--box", "1,1,30,30"), WORKS, REFUSED),
    "ask by point": (lambda d, out: ask(d, "--point", "5,5"), WORKS, REFUSED),
    "ask by example": (
        lambda d, out: ask(d, *shown(d), "--out", str(out / "answer")),
        WORKS,
        WORKS,
    ),
    "ask by both": (lambda d, out: ask(d, "the cup", *shown(d)), WORKS, REFUSED),
    "ask by bank": (lambda d, out: ask(d, "--bank", d), WORKS, WORKS),
    "ask to refine": (lambda d, out: ask(d, *shown(d), "--refine"), REFUSED, REFUSED),
    "ask compiled": (lambda d, out: ask(d, *shown(d), "--compile"), WORKS, REFUSED),
    "ask quantized": (lambda d, out: ask(d, *shown(d), "--quantization", "int8"), WORKS, REFUSED),
    "ask with a template": (
        lambda d, out: ask(d, *shown(d), "--template", "plain"),
        WORKS,
        REFUSED,
    ),
    "eval folder": (
        lambda d, out: ["eval", "folder", "--root", d, "--limit", "2", "--json"],
        WORKS,
        REFUSED,
    ),
    "eval scenes": (lambda d, out: ["eval", "scenes", "--limit", "8", "--json"], WORKS, REFUSED),
    "eval episodes": (lambda d, out: ["eval", "episodes", "--limit", "1", "--json"], WORKS, WORKS),
    "eval episodes by label": (
        lambda d, out: ["eval", "episodes", "--limit", "1", "--prompt", "label", "--json"],
        WORKS,
        REFUSED,
    ),
    "eval episodes by both": (
        lambda d, out: ["eval", "episodes", "--limit", "1", "--prompt", "both", "--json"],
        WORKS,
        WORKS,
    ),
    "finetune": (
        lambda d, out: [
            "finetune",
            d,
            "--out",
            str(out / "tuned"),
            "train.max_steps=1",
            "train.batch=2",
        ],
        WORKS,
        REFUSED,
    ),
    "show": (lambda d, out: ["show", "model"], WORKS, WORKS),
}


@pytest.mark.parametrize(
    "case, model",
    [(c, m) for c in CASES for m in SMALL] + [(c, "photo") for c in WITH_PHOTO],
)
def test_it_works_or_says_why_not(font, folder, tmp_path, capsys, case, model):
    words, *codes = CASES[case]
    expected = WORKS if model == "photo" else codes[SMALL.index(model)]
    code = main([*words(folder, tmp_path), "--model", model, "--device", "cpu"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reasonseg:")]
    assert code == expected, said
    assert len(said) == (1 if code == REFUSED else 0)
    assert not any("Error" in line or "object has no" in line for line in said)


@pytest.mark.parametrize("model", SMALL)
def test_chat(folder, tmp_path, capsys, monkeypatch, model):
    example = shown(folder)
    lines = [f"/ref {example[1]} {example[3]}", "the cup", "/click 5,5", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["chat", IMAGE, "--model", model, "--device", "cpu", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert ("found" in said or "absent" in said) if model == "tiny" else "reads no words" in said


@pytest.mark.parametrize("model, status", [("tiny", 200), ("tiny-seggpt", 422)])
def test_serve(model, status):
    from fastapi.testclient import TestClient

    from reasonseg import Segmenter
    from reasonseg.serving.api import make_app

    with TestClient(make_app(Segmenter.from_pretrained(model, device="cpu"))) as client:
        with open(IMAGE, "rb") as image:
            answer = client.post("/v1/segment", files={"image": image}, data={"text": "the cup"})
    assert answer.status_code == status
    assert status == 200 or "reads no words" in answer.json()["error"]


@pytest.mark.parametrize("model", SMALL)
def test_import_reads_what_model_reads(tmp_path, model):
    """Our own folders too; and what is written answers."""
    assert main(["import", model, str(tmp_path / "copy")]) == 0
    assert main(["show", "model", "--model", str(tmp_path / "copy"), "--device", "cpu"]) == 0


@pytest.mark.parametrize("model", SMALL)
def test_import_verify_says_what_it_compares(tmp_path, capsys, model):
    assert main(["import", model, str(tmp_path / "copy"), "--verify"]) == REFUSED
    assert "segment-anything" in capsys.readouterr().err


@pytest.mark.parametrize("model", SMALL)
def test_merge_of_a_whole_model(tmp_path, capsys, model):
    assert main(["merge", str(PACKAGED[model]), str(tmp_path / "whole")]) == REFUSED
    assert "changes.yaml" in capsys.readouterr().err


def test_photo_is_made_whole(tmp_path):
    assert main(["merge", str(PACKAGED["photo"]), str(tmp_path / "whole")]) == 0
    assert (tmp_path / "whole" / "settings.yaml").is_file()


@pytest.mark.parametrize("model, code", [("tiny", WORKS), ("tiny-seggpt", REFUSED)])
def test_train(folder, tmp_path, capsys, model, code):
    config = {
        "start": model,
        "data": {"kind": "folder", "root": folder},
        "workers": 0,
        "out": str(tmp_path / "run"),
        "stages": {
            "words": {
                "objective": "language",
                "steps": 1,
                "batch": 2,
                "lr": 1e-4,
                "optimizer": "adamw",
            }
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config), encoding="utf-8")
    assert main(["train", str(tmp_path / "run.yaml")]) == code
    assert code == WORKS or "reads no words" in capsys.readouterr().err


def test_every_command_that_takes_a_model_is_here():
    from reasonseg.cli.main import commands
    from reasonseg.cli.options import Parser

    taking = set()
    for command in commands("ask"):
        parser = Parser(prog=command.name)
        parser.asked = ()
        command.arguments(parser)
        if "--model" in parser.format_help() or any(
            "--model" in sub.format_help()
            for action in parser._actions
            for sub in (action.choices.values() if isinstance(action.choices, dict) else ())
            if isinstance(sub, Parser)
        ):
            taking.add(command.name)
    # annotate: serving/
    assert taking == {
        "ask",
        "chat",
        "eval",
        "finetune",
        "show",
        "serve",
        "annotate",
    }
    assert read_arguments(["show", "model"]).model is None
