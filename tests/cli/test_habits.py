"""What hands are used to: words in any order, several images, quotes, fractions, minus signs."""

import base64
import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from reasonseg import InputError, Query
from reasonseg.cli.main import joined, main
from reasonseg.cli.options import images_and_text, in_pixels
from reasonseg.serving.terminal import _words


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes):
    place = tmp_path_factory.mktemp("my photos")
    for k, name in enumerate(("a.png", "b.png")):
        Image.fromarray(scenes[k].query.image).save(place / name)
    return place


def test_options_before_words(folder, tmp_path, capsys):
    call = ["ask", str(folder / "a.png"), "--out", str(tmp_path), "the animal", "--device", "cpu"]
    assert main(call) == 0
    assert (tmp_path / "answer.json").is_file() and "the animal" not in capsys.readouterr().err


def test_several_images_and_patterns(folder, tmp_path, capsys):
    call = ["ask", str(folder / "*.png"), "everything", "--out", str(tmp_path), "--device", "cpu"]
    assert main(call) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}
    assert main([*call, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [r["meta"]["image"].rsplit("/", 1)[-1] for r in rows] == ["a.png", "b.png"]


def test_words_that_are_no_images(folder):
    image = str(folder / "a.png")
    assert images_and_text([image, "the cup"]) == ([image], "the cup")
    assert images_and_text([image, image]) == ([image, image], "")
    assert images_and_text(["nowhere.png", "x"]) == (["nowhere.png"], "x")
    with pytest.raises(InputError, match="put the question in quotes"):
        images_and_text([image, "the", "cup"])


def test_standard_input_and_data_urls(folder, monkeypatch, capsys):
    data = (folder / "a.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    call = ["the animal", "--json", "--device", "cpu"]
    assert main(["ask", str(folder / "a.png"), *call]) == 0
    expected = json.loads(capsys.readouterr().out)["objects"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    for word in ("-", url):
        assert main(["ask", word, *call]) == 0
        assert json.loads(capsys.readouterr().out)["objects"] == expected
    assert main(["ask", "data:image/png;base64,!", *call]) == 2
    assert "no base64" in capsys.readouterr().err


def test_fractions_are_said(capsys):
    assert in_pixels((0.5, 0.25), (40, 80), "--point") == [40, 10]
    assert "fractions of the image" in capsys.readouterr().err
    assert in_pixels((0, 0, 1, 1), (40, 80), "--box") == [0, 0, 1, 1]
    assert in_pixels((0.5, 3), (40, 80), "--point") == [0.5, 3]
    assert not capsys.readouterr().err


def test_negative_numbers_belong_to_their_option():
    assert joined(["ask", "--box", "-5,1,9,9", "x"]) == ["ask", "--box=-5,1,9,9", "x"]
    assert joined(["ask", "--box", "--json"]) == ["ask", "--box", "--json"]


def test_boxes_and_points_on_the_border(scenes):
    image = scenes[0].query.image
    height, width = image.shape[:2]
    query = Query(image, boxes=[(-0.5, -0.5, width + 0.5, height)], points=[(width, height, 1)])
    assert query.boxes == ((0, 0, width, height))[:0] + ((0.0, 0.0, width, height),)
    x, y, _ = query.points[0]
    assert width - 1 < x < width and height - 1 < y < height
    for box in ((-3, 0, 9, 9), (0, 0, width + 2, 9)):
        with pytest.raises(InputError, match="does not lie in"):
            Query(image, boxes=[box])


@pytest.mark.parametrize(
    "option, value",
    [
        ("--temperature", "nan"),
        ("--temperature", "-1"),
        ("--absent-threshold", "1.5"),
        ("--point", "1,2,7"),
        ("--seed", "99999999999999999999999"),
        ("--seed", "-1"),
    ],
)
def test_numbers_out_of_range(folder, option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ask", str(folder / "a.png"), "x", option, value])
    assert caught.value.code == 2 and value in capsys.readouterr().err


def test_a_bank_that_is_not_there(folder, capsys):
    assert main(["ask", str(folder / "a.png"), "--bank", "nowhere"]) == 2
    assert "--bank nowhere is no folder" in capsys.readouterr().err


def test_quoted_paths_in_a_conversation():
    assert _words('/image "my photos/a.png"') == ["/image", "my photos/a.png"]
    assert _words("/image my' photo.png") == ["/image", "my'", "photo.png"]
    assert _words("what's this") == ["what's", "this"]


def test_python_m_reasonseg_and_exit(folder, tmp_path):
    call = [sys.executable, "-m", "reasonseg", "chat", str(folder / "a.png")]
    done = subprocess.run(
        [*call, "--out", str(tmp_path), "--device", "cpu"],
        input="exit\nthe animal\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["eval", "folder"], "--root DIR"),
        (["serve", "--token", ""], "--token is empty"),
        (["serve", "--cors", "example.org"], "--cors example.org"),
        (["serve", "--root-path", "a b"], "--root-path a b"),
    ],
)
def test_what_is_missing_is_said(arguments, words, capsys):
    assert main(arguments) == 2 and words in capsys.readouterr().err


def test_an_empty_token_in_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("REASONSEG_TOKEN", "")
    assert main(["serve"]) == 2 and "REASONSEG_TOKEN is empty" in capsys.readouterr().err
