"""What every backbone must do, whichever file it lives in; also for a tiny Qwen2.5-VL behind
`chat_vlm`.
"""

import numpy as np
import pytest
import torch
from tiny_models import tiny_qwen

from reasonseg import Answer, InputError, Query, Sample
from reasonseg.backbones import chat_vlm
from reasonseg.backbones.language import LanguageBackbone
from reasonseg.config import kinds as config
from reasonseg.nn.generation import MarkerLogitsProcessor
from reasonseg.structures.markers import Markers, add_markers, joined, pieces

KINDS = config.kinds("backbones")
HOW = {
    "max_new_tokens": 6,
    "temperature": 0.0,
    "seed": 0,
    "force_seg": False,
    "absent_threshold": 0.5,
}


def test_the_walk_sees_kinds():
    assert {"llava", "chat_vlm"} <= set(KINDS)


@pytest.fixture(scope="module", params=[*KINDS, "qwen2_5_vl"])
def backbone(request, tmp_path_factory):
    torch.manual_seed(0)
    if request.param == "qwen2_5_vl":
        settings = chat_vlm.Config(*tiny_qwen(tmp_path_factory.mktemp("qwen")))
    else:
        settings = config.config_class("backbones", request.param).example()
    backbone = settings.build().eval()
    # fresh weights say one word for ever; livelier ones differ by question
    for weight in backbone.model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.12)
    return backbone


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((40, 30, 3), (32, 48, 3))]

    def sample(image, text, answer, n):
        status = "found" if n else "absent"
        return Sample(
            Query(image, text),
            Answer(answer, np.ones((n, *image.shape[:2]), bool), [1] * n, ["x"] * n, status),
        )

    return [
        sample(images[0], "Segment the dog.", "The dog <SEG>.", 1),
        sample(
            images[0], "Show me every animal in this image.", "The dog <SEG>, the cat <SEG>.", 2
        ),
        sample(images[1], "Where is the umbrella?", "The umbrella <REJ>.", 0),
        sample(
            images[1],
            "What keeps you dry? Explain why.",
            "The umbrella <SEG>: it keeps you dry in the rain.",
            1,
        ),
    ]


def test_seg_is_one_id_and_survives_decoding(backbone):
    markers = backbone.markers
    assert markers.rej is not None and markers.seg != markers.rej
    answer = "The dog <SEG>, the cat <SEG>."
    ids = backbone.answer_ids(answer)
    assert ids.count(markers.seg) == 2 and ids[-1] in backbone.ends
    assert backbone.decode(ids) == answer


def test_batched_equals_one_by_one(backbone, samples):
    queries = [s.query for s in samples]
    together = backbone.generate(queries, **HOW)
    for query, said in zip(queries, together, strict=True):
        alone = backbone.generate([query], **HOW)[0]
        assert said.ids == alone.ids and said.text == alone.text
        assert torch.allclose(said.states, alone.states, atol=2e-4)
        assert np.allclose(said.probabilities, alone.probabilities, atol=1e-4)
        assert len(said.ids) == len(said.states) == len(said.probabilities)


@torch.inference_mode()
@pytest.mark.parametrize("force", [False, True])
def test_a_loop_of_its_own_says_what_generate_says(backbone, samples, force):
    if type(backbone).say is LanguageBackbone.say:
        pytest.skip("it has none")
    queries = [samples[0].query, samples[2].query, samples[3].query]  # of several lengths: padded
    said = []
    for way in (type(backbone).say, LanguageBackbone.say):
        choose = MarkerLogitsProcessor(
            backbone.markers,
            backbone.ends,
            3,
            limit=6,
            temperature=0.9,
            seed=4,
            force_seg=force,
            absent_threshold=0.5,
        )
        ids, states, cache = way(backbone, backbone.prompt_inputs(queries), choose, 6)
        said.append(
            [(backbone._output(row, states[i], [], False)) for i, row in enumerate(ids.tolist())]
        )
    for ours, theirs in zip(*said, strict=True):
        assert ours.ids == theirs.ids
        torch.testing.assert_close(ours.states, theirs.states, rtol=1e-4, atol=1e-4)
    assert len({tuple(one.ids) for one in said[0]}) > 1
    assert not force or all(backbone.markers.seg in one.ids for one in said[0])


def test_a_kind_compiles_or_says_that_it_cannot(backbone):
    if hasattr(backbone, "stepper"):
        pytest.skip("tests/test_stepping.py")
    with pytest.raises(InputError, match="leave it out"):
        backbone.compile()


def test_sampling_is_the_same_in_a_batch_and_follows_the_seed(backbone, samples):
    queries = [s.query for s in samples]
    hot = {**HOW, "temperature": 2.0}
    together = [s.ids for s in backbone.generate(queries, **hot)]
    assert together == [backbone.generate([q], **hot)[0].ids for q in queries]
    assert together != [s.ids for s in backbone.generate(queries, **{**hot, "seed": 1})]


def test_force_seg_says_it(backbone, samples):
    for said in backbone.generate([s.query for s in samples], **{**HOW, "force_seg": True}):
        assert backbone.markers.seg in said.ids and backbone.markers.rej not in said.ids


@torch.no_grad()
def test_taught_states_equal_those_of_the_generated_words(backbone, samples):
    """The one path: what is read off an answer when it is taught is what is read when the model
    says it.
    """
    for sample in samples[:2]:
        said = backbone.generate([sample.query], **{**HOW, "force_seg": True})[0]
        if said.ids[-1] not in backbone.ends:
            said.ids.append(next(iter(backbone.ends)))
        where = [t for t, i in enumerate(said.ids) if i == backbone.markers.seg]
        original = type(backbone).answer_ids
        try:
            type(backbone).answer_ids = lambda self, text, ids=said.ids: ids
            taught = backbone.teach([sample])
        finally:
            type(backbone).answer_ids = original
        assert torch.allclose(taught.states, said.states[where], atol=3e-4)


def test_teaching_together_equals_teaching_alone(backbone, samples):
    with torch.no_grad():
        together = backbone.teach(samples)
        alone = [backbone.teach([s]) for s in samples]
    assert together.sample_index == [0, 1, 1, 3]
    assert together.tokens == sum(a.tokens for a in alone)
    assert float(together.cross_entropy) == pytest.approx(
        float(sum(a.cross_entropy for a in alone)), rel=1e-4
    )
    assert torch.allclose(together.states, torch.cat([a.states for a in alone]), atol=3e-4)


def test_reading_at_the_token_reads_the_next_state(backbone, samples):
    with torch.no_grad():
        before, at = backbone.teach(samples[:1]), backbone.teach(samples[:1], "at")
    assert before.states.shape == at.states.shape and not torch.allclose(
        before.states, at.states, atol=1e-3
    )


def test_the_state_at_the_last_token_is_known(backbone, samples):
    how = {**HOW, "force_seg": True, "max_new_tokens": 3}
    for query in (samples[0].query, samples[3].query):
        plain, at = (
            backbone.generate([query], **how)[0],
            backbone.generate([query], state="at", **how)[0],
        )
        assert plain.ids == at.ids and len(at.states) == len(plain.states) + 1
        assert torch.allclose(plain.states, at.states[:-1], atol=1e-5)


def test_teaching_reaches_the_language_model(backbone, samples):
    backbone.zero_grad()
    taught = backbone.teach(samples)
    (taught.cross_entropy + taught.states.square().sum()).backward()
    assert backbone.model.get_input_embeddings().weight.grad.abs().sum() > 0
    backbone.zero_grad()


def test_history_changes_what_is_said_next(backbone, samples):
    query = samples[0].query
    later = Query(query.image, query.text, history=[("Where is the cat?", "The cat <SEG>.")])
    states = [backbone.generate([q], **HOW)[0].states[0] for q in (query, later)]
    assert not torch.allclose(*states, atol=1e-4)


@torch.no_grad()
def test_saved_and_loaded_says_the_same(backbone, samples, tmp_path):
    backbone.save(tmp_path)
    loaded = backbone.config.load(tmp_path).eval()
    ours, theirs = (b.generate([samples[0].query], **HOW)[0] for b in (backbone, loaded))
    assert ours.ids == theirs.ids and torch.allclose(ours.states, theirs.states, atol=1e-5)


def test_a_user_cannot_speak_in_markers(backbone, samples):
    if hasattr(backbone, "prompt_ids"):
        image = samples[0].query.image
        ids = backbone.prompt_ids(Query(image, "the <SEG> dog <image> <IMG_CONTEXT> </s>"))
        plain = backbone.prompt_ids(Query(image, "the dog"))
        assert backbone.markers.seg not in ids
        assert ids.count(backbone.image_id) == plain.count(backbone.image_id)


def test_markers_are_added_once(tmp_path):
    from transformers import AutoTokenizer

    from reasonseg.nn.pretrained import EMBEDDED

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "backbone")
    size = len(tokenizer)
    assert add_markers(tokenizer) == Markers.find(tokenizer) and len(tokenizer) == size
    with pytest.raises(InputError, match="has no <SEG>"):
        Markers.find(type("T", (), {"get_vocab": lambda self: {}})())


def test_pieces_and_joined():
    assert pieces("The cat <SEG>, the dog <SEG>.", ("<SEG>",)) == [
        "The cat",
        "<SEG>",
        ", the dog",
        "<SEG>",
        ".",
    ]
    assert (
        joined(["The cat", "<SEG>", ", the dog", "<SEG>", "."]) == "The cat <SEG>, the dog <SEG>."
    )


@pytest.mark.parametrize("threshold, expected", [(0.1, 3), (0.3, 3), (0.5, 2), (0.9, 2)])
def test_the_absent_threshold_moves_the_line(threshold, expected):
    markers = Markers(2, 3, "<SEG>", "<REJ>")
    chooser = MarkerLogitsProcessor(
        markers, {0}, 1, limit=5, temperature=0, seed=0, force_seg=False, absent_threshold=threshold
    )
    scores = torch.log(torch.tensor([[0.05, 0.05, 0.6, 0.3]]))  # <REJ> has a third of the two
    assert chooser(torch.zeros(1, 0, dtype=torch.long), scores).argmax() == expected
