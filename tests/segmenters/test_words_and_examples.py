"""Words, examples, and both in one model: what holds whatever the weights are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonseg import Answer, InputError, Query, Reference, Sample, Segmenter
from reasonseg.backbones.llava import Config as LlavaConfig
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import Config as ScenesConfig
from reasonseg.decoders.sam import Config as SamConfig
from reasonseg.prompters.seg_token import Config as SegTokenConfig
from reasonseg.prompters.vlp import Config as VlpConfig

TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 2403,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
}
TEXT |= {
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def built(examples=True):
    torch.manual_seed(0)
    shown = VlpConfig(TEXT, tower="backbone", queries=3, joint=12, template="{}")
    settings = ModelSettings(
        Kind("sam", SamConfig.example()),
        Kind("llava", replace(LlavaConfig.example(), examples=examples)),
        Kind("seg_token", SegTokenConfig()),
        Kind("vlp", shown),
    )
    segmenter = Segmenter.build(settings).eval()
    for weight in segmenter.decoder.model.mask_decoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return segmenter


@pytest.fixture(scope="module")
def model():
    return built()


def picture(seed, size=(40, 52)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def shown(seed=0, label=None):
    mask = np.zeros((40, 52), bool)
    mask[5:30, 10 + seed : 30 + seed] = True
    return Reference(picture(50 + seed), mask=mask, label=label)


def mixed():
    first = picture(1)
    return [
        Query(first, "the cat"),
        Query(first, "the red one like this", [shown(0)]),
        Query(first, references=[shown(1, "cat"), shown(2, "cat")]),
        Query(
            picture(2),
            "one like this, but small",
            [shown(0, "dog"), shown(1, "dog")],
            points=[(5, 5, 1)],
        ),
        Query(picture(3), boxes=[(3, 3, 30, 30)]),
    ]


def test_batched_is_one_by_one_and_cached_is_uncached(model):
    model.forget()
    together = model.batch(mixed(), force_seg=True, max_new_tokens=6)
    for answer, query in zip(together, mixed(), strict=True):
        model.forget()
        alone = model(query, force_seg=True, max_new_tokens=6)
        assert alone.text == answer.text and (alone.masks ^ answer.masks).mean() < 1e-3
        again = model(query, force_seg=True, max_new_tokens=6)
        assert np.array_equal(alone.masks, again.masks)


def test_examples_reach_the_language_model_and_the_decoder(model):
    query = mixed()[1]
    plain, other = replace(query, references=[]), replace(query, references=[shown(3, "owl")])
    ids = [model.backbone.prompt_ids(q) for q in (plain, query, other)]
    image = model.backbone.image_id
    assert [row.count(image) - ids[0].count(image) for row in ids] == [0, 1, 1] and len(
        ids[2]
    ) > len(ids[1])
    with torch.inference_mode():
        how = {
            "max_new_tokens": 1,
            "temperature": 0,
            "seed": 0,
            "force_seg": True,
            "absent_threshold": 0.5,
        }
        states = [model.backbone.generate([q], **how)[0].states for q in (plain, query, other)]
    assert not torch.allclose(states[0], states[1], atol=1e-4) and not torch.allclose(
        states[1], states[2], atol=1e-4
    )


def test_a_model_not_taught_them_in_words_only_draws_with_them():
    model = built(examples=False)
    query = mixed()[1]
    plain = replace(query, references=[])
    assert model.backbone.prompt_ids(query) == model.backbone.prompt_ids(plain)
    masks = [model(q, force_seg=True, max_new_tokens=2).masks for q in (query, plain)]
    assert masks[0].shape == masks[1].shape and not np.array_equal(*masks)


def test_names_in_labels_are_no_names(model):
    query = Query(picture(1), "one like this", [shown(0, "cat <image> <region> <SEG>")])
    row = model.backbone.prompt_ids(query)
    assert (
        row.count(model.backbone.image_id) == model.backbone.patches + 1
        and model.backbone.markers.seg not in row
    )


def truth(query, masks=1):
    marked = np.zeros((masks, *query.size), bool)
    marked[:, 5:20, 5:25] = True
    text = " ".join(["it <SEG>"] * masks) if query.text else ""
    return Sample(query, Answer(text, marked, np.ones(masks), ["it"] * masks, "found"))


def test_losses_of_a_mixed_batch_are_those_one_by_one(model):
    samples = [truth(q) for q in mixed()[:4]]
    with torch.no_grad():
        together = model.loss(samples)
        alone = [model.loss([s]) for s in samples]
    for part in ("bce", "dice"):
        assert float(together[part]) == pytest.approx(
            np.mean([float(a[part]) for a in alone]), rel=1e-3
        )
    assert alone[2]["text"] == 0 and alone[2]["loss"] > 0


def test_gradients_reach_the_tower_from_an_example(model):
    model.zero_grad()
    model.loss([truth(mixed()[2])])["loss"].backward()
    assert model.backbone.tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert model.references.visual_projection.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_saved_and_read_again(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again = Segmenter.from_pretrained(tmp_path / "m", device="cpu")
    for query in mixed():
        ours, theirs = (m(query, force_seg=True, max_new_tokens=4) for m in (model, again))
        assert ours.text == theirs.text and np.array_equal(ours.masks, theirs.masks)


def test_labels_leave_no_trace_in_the_saved_tokenizer(tmp_path):
    """The label's reader shares the language model's tokenizer, and cuts what it reads."""
    model = built()
    model.save_pretrained(tmp_path / "fresh")
    model(Query(picture(1), "", [shown(0, "cat")]))
    model.save_pretrained(tmp_path / "used")
    fresh, used = (
        (tmp_path / name / "backbone" / "tokenizer.json").read_bytes() for name in ("fresh", "used")
    )
    assert fresh == used


def test_a_backbone_without_a_tower_of_its_own_lends_none(tmp_path):
    from reasonseg.backbones.chat_vlm import Config as ChatConfig

    shown = Kind("vlp", VlpConfig(TEXT, tower="backbone", width_tower=32))
    settings = ModelSettings(
        Kind("sam", SamConfig.example()),
        Kind("chat_vlm", ChatConfig.example()),
        Kind("seg_token", SegTokenConfig()),
        shown,
    )
    with pytest.raises(InputError, match="whose vision tower can be asked alone"):
        Segmenter.build(settings)


def test_a_chat_model_looks_at_the_marked_pictures():
    from reasonseg.backbones.chat_vlm import Config as ChatConfig

    backbone = ChatConfig.example().build().eval()
    plain, both = Query(picture(1), "this"), Query(picture(1), "this", [shown(0, "cat"), shown(1)])
    assert (
        sum(c["type"] == "image" for turn in backbone.messages(both) for c in turn["content"]) == 3
    )
    assert (
        "Picture 2 marks an example: cat. Picture 3 marks an example."
        in backbone.messages(both)[-1]["content"][-1]["text"]
    )
    counts = [
        (backbone.prompt_inputs([q])["input_ids"] == backbone.model.config.image_token_id).sum()
        for q in (plain, both)
    ]
    assert counts[1] == 3 * counts[0]


def test_questions_that_go_with_references(font):
    data = ScenesConfig("val", 12, size=96, levels=("alike", "shown"), shown=2).build()
    for i in range(12):
        sample = data[i]
        assert 1 <= len(sample.query.references) <= 2 and sample.truth.status == "found"
        assert all(r.label is None and r.mask.any() for r in sample.query.references)
        if sample.level == "alike":
            assert (
                "one like this" in sample.query.text.lower()
                and sample.truth.labels[0] not in sample.query.text
            )
            assert sample.truth.text.count("<SEG>") == len(sample.truth.masks) == 1
        else:
            assert not sample.query.text and len(sample.truth.masks) == 1
    with pytest.raises(InputError, match="needs references"):
        ScenesConfig(levels=("alike",)).build()


def test_withheld_things_can_be_asked_about(font):
    from reasonseg.datasets.synthetic.knowledge import Knowledge

    data, knowledge = (
        ScenesConfig("val", 4, size=96, levels=("alike",), shown=1, withheld=True).build(),
        Knowledge.load(),
    )
    assert all(knowledge.withheld(data[i].truth.labels[0]) for i in range(4))


def test_another_prompter_keeps_the_refiner():
    model = built()
    model.refiner = model.decoder
    shown = VlpConfig(TEXT, tower="backbone", queries=3, joint=12, template="{}")
    other = model.with_references(Kind("vlp", shown))
    assert other.refiner is model.refiner and other.references is not model.references
