import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from reasonseg.cli.main import main
from reasonseg.structures.masks import from_rle


@pytest.fixture(scope="module")
def files(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("files")
    sample = next(s for s in scenes if s.level == "name")
    Image.fromarray(sample.query.image).save(folder / "scene.png")
    (folder / "text.txt").write_text("hello", encoding="utf-8")
    (folder / "empty.png").write_bytes(b"")
    (folder / "question").write_text(sample.query.text, encoding="utf-8")
    return folder


def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["ask", "missing.png", "a"], "missing.png does not exist"),
        (["ask", "{f}", "a"], "is a folder"),
        (["ask", "{f}/text.txt", "a"], "not an image"),
        (["ask", "{f}/empty.png", "a"], "0 bytes"),
        (["ask", "{f}/scene.png", "  "], "nothing is asked"),
        (["ask", "{f}/scene.png"], "nothing is asked"),
        (["ask", "{f}/scene.png", "dog " * 10_000], "10000 words"),
        (["ask", "{f}/scene.png", "a", "--model", "./nowhere"], "nothing at ./nowhere"),
        (["ask", "{f}/scene.png", "a", "--model", "{f}"], "is no model we know"),
        (["ask", "{f}/scene.png", "a", "--box", "1,2,3"], "not a box"),
        (["ask", "{f}/scene.png", "a", "--box", "1,2,9000,4"], "does not lie in"),
        (["ask", "{f}/scene.png", "a", "--ref", "{f}/scene.png"], "pair them"),
        (["ask", "{f}/scene.png", "a", "--dtype", "float3"], "invalid choice"),
        (["ask", "{f}/scene.png", "a", "--device", "warp"], "--device warp"),
        (["ask", "{f}/scene.png", "a", "--out", "{f}/text.txt/x"], "cannot make the folder"),
        (["ask"], "required"),
        (["aks"], "invalid choice"),
        (["train", "nowhere.yaml"], "does not exist"),
        (["train", "configs/tiny.yaml", "stages.tower.lrr=3"], "did you mean 'lr'"),
        (["show", "config", "configs/tiny.yaml", "data.kind=scene"], "did you mean 'scenes'"),
        (["eval", "scenes", "--levels", "nam", "--limit", "7"], "no level 'nam'"),
        (["eval", "scenes", "--split", "exam", "--limit", "7"], "no split 'exam'"),
        (["eval", "scenes", "--sprites", "{f}"], "no index.json"),
        (["eval", "scenes", "--limit", "-3"], "not a whole number"),
        (["eval", "scenes", "--predictions", "nowhere.jsonl"], "does not exist"),
        (["scenes", "draw", "--out", "{f}/d", "--split", "exam"], "no split"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, files, arguments, words):
    code, _, err = run(capsys, *(a.replace("{f}", str(files)) for a in arguments))
    lines = [line for line in err.splitlines() if line.startswith("reasonseg:")]
    assert code == 2, err
    assert len(lines) == 1 and words in lines[0], err
    assert "Traceback" not in err


def test_a_mistake_writes_nothing(capsys, files, tmp_path):
    run(capsys, "ask", files / "text.txt", "a", "--out", tmp_path / "o")
    run(capsys, "ask", files / "scene.png", "", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_ask_writes_what_it_prints(capsys, files, tmp_path):
    question = (files / "question").read_text(encoding="utf-8")
    code, out, err = run(
        capsys, "ask", files / "scene.png", question, "--out", tmp_path / "o", "--json"
    )
    assert code == 0 and "drawn scenes" in err and "--model" in err
    printed, written = (
        json.loads(out),
        json.loads((tmp_path / "o" / "answer.json").read_text(encoding="utf-8")),
    )
    assert printed == written and printed["status"] == "found"
    mask = np.asarray(Image.open(tmp_path / "o" / "mask-0.png"))
    assert set(np.unique(mask)) <= {0, 255}
    assert (from_rle(printed["objects"][0]["segmentation"]) == (mask > 0)).all()
    assert (tmp_path / "o" / "overlay.png").is_file()
    x0, y0, x1, y1 = printed["objects"][0]["box"]
    assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0


def test_ask_in_words(capsys, files):
    code, out, _ = run(capsys, "ask", files / "scene.png", "--box", "10,10,100,100")
    assert code == 0 and "score" in out


def test_chat_keeps_turns(capsys, files, tmp_path, monkeypatch):
    lines = iter(
        [
            "/help",
            "/nonsense",
            (files / "question").read_text(encoding="utf-8"),
            "/undo",
            "/undo",
            "/image nowhere.png",
            "/quit",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    code, out, _ = run(capsys, "chat", files / "scene.png", "--out", tmp_path / "c")
    assert (
        code == 0
        and "no command /nonsense" in out
        and "forgot:" in out
        and "no turn to forget" in out
    )
    assert "does not exist" in out and (tmp_path / "c" / "turn-1" / "answer.json").is_file()


def test_show_and_doctor(capsys):
    code, out, _ = run(capsys, "show", "config", "configs/tiny.yaml", "workers=0")
    assert code == 0 and "workers: 0" in out and "hidden_size: 192" in out
    code, out, _ = run(capsys, "show", "model")
    assert code == 0 and "backbone" in out and "<SEG>" in out
    code, out, _ = run(capsys, "doctor")
    assert code == 0 and "torch" in out and "model tiny: ready" in out


def test_scenes_draw_and_sprites(capsys, font, tmp_path):
    code, _, _ = run(capsys, "scenes", "draw", "--out", tmp_path / "d", "--count", "7")
    assert code == 0 and (tmp_path / "d" / "sheet.png").is_file()
    lines = [
        json.loads(line)
        for line in (tmp_path / "d" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len({line["level"] for line in lines}) == 7
    code, _, _ = run(capsys, "scenes", "sprites", "--out", tmp_path / "s")
    assert (
        code == 0
        and len(json.loads((tmp_path / "s" / "index.json").read_text(encoding="utf-8"))) >= 200
    )
    code, _, err = run(capsys, "scenes", "sprites", "--out", tmp_path / "s")
    assert code == 2 and "already holds" in err


def test_help_is_quick():
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "reasonseg.cli", "--help"], check=True, capture_output=True
    )
    # half a second on an idle machine; this one may be busy
    assert time.perf_counter() - began < 2.0
