"""Compiled words are the words."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reasonseg import InputError, Query, Segmenter
from reasonseg.nn import generation as stepping
from reasonseg.nn.pretrained import EMBEDDED

FALLS_BACK = """
import sys, warnings
import numpy as np
from reasonseg import Query, Segmenter
segmenter = Segmenter.from_pretrained("tiny", compile=True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    answer = segmenter(Query(np.zeros((40, 60, 3), np.uint8), "the cup"), max_new_tokens=6)
assert any("leave it out" in str(w.message) for w in said), [str(w.message) for w in said]
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
    # follow-ups: the prefix is known
    again = [compiled(q, max_new_tokens=12, **how) for q in asked()]
    together = compiled.batch(asked(), max_new_tokens=12, **how)
    eager = segmenter.batch(asked(), max_new_tokens=12, **how)
    assert compiled.backbone.stepper.compiled, "nothing was compiled"
    for theirs, *ours in zip(eager, one_by_one, again, together, strict=True):
        for mine in ours:
            assert mine.text == theirs.text and mine.status == theirs.status
            assert (
                (mine.masks != theirs.masks).mean() < 1e-3
                if theirs.masks.size
                else not mine.masks.size
            )
            np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-3)


def test_places_serve_batches_of_many_sizes(compiled, segmenter):
    stepper = compiled.backbone.stepper
    queries = [
        Query(scene(i), text)
        for i, text in enumerate(("the cup", "the red car", "the dog", "a tree", "the hat"))
    ]
    expected = [a.text for a in segmenter.batch(queries, max_new_tokens=8)]
    kept = []
    for _ in range(2):
        for count in (1, 3, 5, 2, 4):
            said = compiled.batch(queries[:count], max_new_tokens=8)
            assert [a.text for a in said] == expected[:count]
        kept.append(sorted(len(k.layers[0].keys) for k in stepper.kept))
    assert kept[0] == kept[1] == [1, 2, 4, 8], "laid out anew"


def test_places_are_bounded(compiled, monkeypatch):
    compiled.batch(asked(), max_new_tokens=300)
    compiled(asked()[0], max_new_tokens=4)
    monkeypatch.setattr(stepping, "BUDGET", 1)
    compiled(asked()[0], max_new_tokens=4)
    assert len(compiled.backbone.stepper.kept) == 1


def test_one_word_and_the_state_at_the_last(compiled, segmenter):
    how = {"temperature": 0.0, "seed": 0, "force_seg": True, "absent_threshold": 0.5}
    for limit in (1, 3):
        ours, theirs = (
            s.backbone.generate([q for q in asked()], max_new_tokens=limit, state="at", **how)
            for s in (compiled, segmenter)
        )
        for mine, other in zip(ours, theirs, strict=True):
            assert (
                mine.ids == other.ids and len(mine.states) == len(other.states) == len(mine.ids) + 1
            )
            np.testing.assert_allclose(mine.states.numpy(), other.states.numpy(), atol=1e-3)


def test_several_at_once(compiled, segmenter):
    expected = [segmenter(q, max_new_tokens=12).text for q in asked()] * 4
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda q: compiled(q, max_new_tokens=12).text, asked() * 4))
    assert said == expected


def test_a_listener_may_ask(compiled, segmenter):
    heard = []

    def listen(_, text):
        if not heard:
            heard.append(compiled(asked()[1], max_new_tokens=4).text)

    assert (
        compiled.batch(asked()[:1], max_new_tokens=8, on_text=listen)[0].text
        == segmenter(asked()[0], max_new_tokens=8).text
    )
    assert heard == [segmenter(asked()[1], max_new_tokens=4).text]


def test_a_copy_has_places_of_its_own(compiled):
    twin = copy.deepcopy(compiled.backbone)
    assert twin.stepper.model is twin.model and twin.stepper.compiled and not twin.stepper.kept


def test_without_a_compiler_it_goes_on_with_a_warning(tmp_path):
    environment = {
        "CXX": str(tmp_path / "none"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PATH": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", FALLS_BACK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = Segmenter.from_pretrained("tiny")(
        Query(np.zeros((40, 60, 3), np.uint8), "the cup"), max_new_tokens=6
    )
    assert done.stdout.strip() == expected.text


def test_a_model_without_words_has_nothing_to_compile():
    with pytest.raises(InputError, match="takes examples only"):
        Segmenter.from_pretrained(EMBEDDED.parent / "tiny_seggpt", compile=True)
