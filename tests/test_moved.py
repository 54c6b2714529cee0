"""Old names of modules work for one release, and say the new one."""

import importlib
import subprocess
import sys

import pytest

from reasonseg import moved


@pytest.mark.parametrize("old", moved.MODULES)
def test_an_old_name_is_the_new_module(old, monkeypatch):
    new = f"reasonseg.{moved.MODULES[old]}".rstrip(".")
    try:
        wanted = importlib.import_module(new)
    except ImportError as error:
        pytest.skip(f"LOUD: {new} needs {error.name}, which is not installed")
    monkeypatch.delitem(sys.modules, f"reasonseg.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"is now {new}"):
        found = importlib.import_module(f"reasonseg.{old}")
    assert found is wanted and found.__spec__.name == new and found.__name__ == new


def test_a_class_has_one_identity_under_both_names():
    code = (
        "from reasonseg.serve.session import Session as a; from reasonseg.serving.session "
        "import Session as b; from reasonseg.vocabulary import Answer; import reasonseg; "
        "from reasonseg import masks; import reasonseg.structures.masks as m; "
        "assert a is b is reasonseg.Session and Answer is reasonseg.Answer and masks is m"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("reasonseg.nowhere")


def test_the_old_script_says_where_the_new_one_is():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "scripts" / "train_tiny.sh").read_text(encoding="utf-8")
    assert "recipes/embedded/train.sh" in text
