"""Compiled words are the words."""

import subprocess
import sys

import numpy as np
import pytest

from reasonseg import InputError, Query, Segmenter
from reasonseg.hub import EMBEDDED

FALLS_BACK = """
import sys, warnings
import numpy as np
from reasonseg import Query, Segmenter
segmenter = Segmenter.from_pretrained(compile=True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    answer = segmenter(Query(np.zeros((40, 60, 3), np.uint8), "the cup"), max_new_tokens=6)
assert any("runs as it is" in str(w.message) for w in said), [str(w.message) for w in said]
print(answer.text)
"""


@pytest.fixture(scope="module")
def compiled():
    return Segmenter.from_pretrained(compile=True)


def scene(seed):
    return np.random.default_rng(seed).integers(0, 256, (60 + 20 * seed, 90, 3), dtype=np.uint8)


def asked():
    words = ("the cup", "every animal that flies, and why", "the red car")
    return [Query(scene(i), text) for i, text in enumerate(words)]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 3}, {"force_seg": True}])
def test_compiled_is_eager(compiled, segmenter, how):
    one_by_one = [compiled(q, max_new_tokens=12, **how) for q in asked()]
    again = [compiled(q, max_new_tokens=12, **how) for q in asked()]  # follow-ups: the prefix is known
    together = compiled.batch(asked(), max_new_tokens=12, **how)
    eager = segmenter.batch(asked(), max_new_tokens=12, **how)
    assert compiled.backbone.stepper.compiled, "nothing was compiled"
    for theirs, *ours in zip(eager, one_by_one, again, together, strict=True):
        for mine in ours:
            assert mine.text == theirs.text and mine.status == theirs.status
            assert (mine.masks != theirs.masks).mean() < 1e-3 if theirs.masks.size else not mine.masks.size
            np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-3)


def test_places_are_laid_out_anew_only_where_they_must_be(compiled):
    stepper = compiled.backbone.stepper
    compiled(asked()[0], max_new_tokens=4)
    first = stepper.places
    compiled(asked()[2], max_new_tokens=8)
    assert stepper.places is first
    compiled(asked()[0], max_new_tokens=200)
    assert stepper.places is not first


def test_without_a_compiler_it_goes_on_with_a_warning(tmp_path):
    environment = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FALLS_BACK], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = Segmenter.from_pretrained()(Query(np.zeros((40, 60, 3), np.uint8), "the cup"), max_new_tokens=6)
    assert done.stdout.strip() == expected.text


def test_a_model_without_words_has_nothing_to_compile():
    with pytest.raises(InputError, match="takes examples only"):
        Segmenter.from_pretrained(EMBEDDED.parent / "tiny_seggpt", compile=True)
