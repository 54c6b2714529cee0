from dataclasses import replace

import numpy as np
import pytest
import torch

from reasonseg import InputError, Query, Reference, Segmenter
from reasonseg.checkpoints.parts import Parts
from reasonseg.segmenters.base import segmenter_of
from reasonseg.segmenters.postprocess import labels_of


def same(a, b, flips=4):
    assert a.text == b.text and a.status == b.status and a.labels == b.labels
    assert np.allclose(a.scores, b.scores, atol=1e-3)
    assert np.abs(a.masks.astype(int) - b.masks).sum() <= flips


def test_batched_equals_one_by_one(segmenter, scenes):
    queries = [s.query for s in scenes]
    queries.append(Query(scenes[0].query.image, boxes=[(20, 20, 90, 90)]))
    queries.append(Query(scenes[1].query.image, scenes[1].query.text, points=[(30, 30, 1)]))
    for query, answer in zip(queries, segmenter.batch(queries), strict=True):
        same(answer, segmenter(query))


def test_saved_and_loaded_answers_the_same(segmenter, scenes, tmp_path):
    segmenter.save_pretrained(tmp_path / "model")
    loaded = Segmenter.from_pretrained(tmp_path / "model")
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    same(segmenter(scenes[0].query), loaded(scenes[0].query), flips=0)
    segmenter.save_pretrained(tmp_path / "model")  # over itself
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_taught_masks_equal_generated_ones(segmenter, scenes):
    """The same words give the same masks, whether the model says them or is taught them."""
    compared = 0
    for sample in scenes:
        answer = segmenter(sample.query)
        if answer.status != "found" or answer.text != sample.truth.text:
            continue
        with torch.no_grad():
            taught = segmenter.backbone.teach([sample])
            features = segmenter.decoder.encode([sample.query.image])
            index = torch.zeros(len(taught.states), dtype=torch.long)
            logits, _ = segmenter.decoder.decode(features, index, segmenter.prompter(taught.states))
            masks = segmenter.decoder.restore(logits, sample.query.size) > 0
        assert np.abs(masks.numpy().astype(int) - answer.masks).sum() <= 6
        compared += 1
    assert compared >= 4


def test_the_loss_is_finite_and_counts_every_mask(segmenter, scenes):
    with torch.no_grad():
        parts = segmenter.loss(scenes)
    assert all(torch.isfinite(v).all() for v in parts.values())
    weights = segmenter.settings.loss
    total = sum(getattr(weights, k) * parts[k] for k in ("text", "bce", "dice", "iou"))
    assert float(parts["loss"]) == pytest.approx(float(total), rel=1e-5)
    with torch.no_grad():
        halves = [segmenter.loss(scenes[:7]), segmenter.loss(scenes[7:])]
    n = [sum(len(s.truth.masks) for s in part) for part in (scenes[:7], scenes[7:])]
    mean = sum(float(h["dice"]) * k for h, k in zip(halves, n, strict=True)) / sum(n)
    assert float(parts["dice"]) == pytest.approx(mean, rel=1e-3)


def test_an_answer_that_asks_for_other_masks_than_its_truth_is_refused(segmenter, scenes):
    sample = next(s for s in scenes if s.level == "name")
    sample = type(sample)(sample.query, sample.truth)
    sample.truth.text, kept = "The dog.", sample.truth.text
    try:
        with pytest.raises(InputError, match="0 masks in all"):
            segmenter.loss([sample])
    finally:
        sample.truth.text = kept


def test_places_alone_give_one_mask_and_no_words(segmenter, scenes):
    sample = next(s for s in scenes if s.level == "name")
    ys, xs = np.nonzero(sample.truth.masks[0])
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    answer = segmenter(Query(sample.query.image, boxes=[box]))
    assert answer.text == "" and answer.status == "found" and len(answer.masks) == 1
    corrected = segmenter(Query(sample.query.image, boxes=[box], previous=answer.masks[0]))
    assert len(corrected.masks) == 1 and (corrected.masks != answer.masks).any()


def test_a_box_marks_its_thing(segmenter, scenes):
    overlaps = []
    for sample in (s for s in scenes if s.level in ("name", "attribute", "function")):
        ys, xs = np.nonzero(sample.truth.masks[0])
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        mask = segmenter(Query(sample.query.image, boxes=[box])).masks[0]
        overlaps.append((mask & sample.truth.masks[0]).sum() / (mask | sample.truth.masks[0]).sum())
    assert np.mean(overlaps) > 0.6


def test_force_seg_marks_what_is_refused(segmenter, scenes):
    sample = next(s for s in scenes if s.level == "absent")
    assert segmenter(sample.query, force_seg=True).status == "found"
    assert (
        segmenter(sample.query, absent_threshold=1e-6).status != "found"
        or segmenter(sample.query).status == "found"
    )


def test_masks_are_in_the_frame_of_any_picture(segmenter):
    rng = np.random.default_rng(0)
    for size in ((1, 1), (30, 1400), (700, 20)):
        answer = segmenter(
            Query(rng.integers(0, 256, (*size, 3), dtype=np.uint8), "the cat"), force_seg=True
        )
        assert answer.masks.shape[1:] == size


def test_references_are_refused_plainly_where_they_were_not_taught(segmenter, picture):
    from dataclasses import replace

    words = replace(segmenter.settings, references=None)
    parts = Parts(words, segmenter.backbone, segmenter.prompter, segmenter.decoder)
    plain = segmenter_of(parts)
    reference = Reference(picture, mask=np.ones(picture.shape[:2], bool))
    with pytest.raises(InputError, match="not trained on references"):
        plain(Query(picture, references=[reference]))


def test_the_embedded_model_finds_what_an_example_shows(segmenter, font):
    """Things withheld from all training, each shown once: far better than everything that is not
    background.
    """
    from reasonseg.datasets.episodes import Config
    from reasonseg.evaluation.few_shot import evaluate_episodes

    found = evaluate_episodes(
        segmenter, Config(count=24, size=224), groups=("withheld",), progress=False
    )
    assert found["withheld"]["miou"] > 0.6


def test_words_beside_an_example_say_which(segmenter, font):
    from dataclasses import replace

    from reasonseg.datasets.scenes import Config
    from reasonseg.evaluation.metrics import count

    data = Config("val", 30, size=224, levels=("alike",), shown=1).build()
    samples = [data[i] for i in range(30)]

    def score(queries):
        answers = segmenter.batch(queries)
        pairs = zip(answers, samples, strict=True)
        return np.mean(
            [
                count(a.masks.any(0), s.truth.masks[0]).giou if len(a.masks) else 0.0
                for a, s in pairs
            ]
        )

    both = score([s.query for s in samples])
    assert both > 0.08 + score([replace(s.query, text="") for s in samples])
    assert both > 0.08 + score([replace(s.query, references=[]) for s in samples])


def test_a_question_longer_than_the_model_reads_is_refused(segmenter, picture):
    with pytest.raises(InputError, match="tokens long"):
        segmenter(Query(picture, "umbrella " * 1900))


@pytest.mark.parametrize(
    "text, labels",
    [
        ("The umbrella <SEG>.", ["umbrella"]),
        ("The cat <SEG>, the dog <SEG>.", ["cat", "dog"]),
        ("The largest animal, the elephant <SEG>.", ["elephant"]),
        ("Sure, it is <SEG>.", ["what flies"]),
        ("<SEG>.", ["what flies"]),
        ("The umbrella <SEG>: it keeps you dry.", ["umbrella"]),
        ("The umbrella <REJ>.", []),
        ("There is a cat <SEG> and a dog <SEG>.", ["There is a cat", "dog"]),
    ],
)
def test_labels(text, labels):
    assert labels_of(text, "<SEG>", "<REJ>", "what flies") == labels


def test_a_doubted_answer_is_absent(segmenter, scenes):
    """Words alone are doubted; what is pointed at or forced is not."""
    from dataclasses import replace

    sample = next(s for s in scenes if len(s.truth.masks))
    settings = segmenter.settings
    plain = segmenter(sample.query)
    box = replace(sample.query, boxes=[(10, 10, 60, 60)])
    try:
        segmenter.settings = replace(settings, doubt=1.0)
        doubted = segmenter(sample.query)
        assert plain.status == "found" and doubted.status == "absent" and not len(doubted.masks)
        assert doubted.meta["doubted"] == plain.text
        assert segmenter(sample.query, force_seg=True).status == "found"
        assert segmenter(box).status == "found"
    finally:
        segmenter.settings = settings


def test_a_model_of_english_alone_says_so(segmenter, scenes):
    english = Segmenter.from_pretrained("tiny", device="cpu")
    english.settings = replace(segmenter.settings, english_only=True)
    image = scenes[0].query.image
    with pytest.raises(InputError, match="looks German: ask in English"):
        english(Query(image, "wo ist der Hund?"))
    assert english(scenes[0].query).text == segmenter(scenes[0].query).text
    assert segmenter(Query(image, "wo ist der Hund?")).status
