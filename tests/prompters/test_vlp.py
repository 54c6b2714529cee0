"""References to prompt tokens: what holds whatever the weights are."""

import numpy as np
import pytest
import torch
from tiny_models import reference_model

from reasonseg import InputError, Query, Reference, Segmenter
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.decoders.sam import Config as SamConfig
from reasonseg.prompters.vlp import common_label, sine_positions
from reasonseg.structures.reference_masks import region


@pytest.fixture(scope="module")
def model():
    """References and SAM, without words, small and fresh."""
    return reference_model()


def shown(seed=0, label=None, size=(40, 60), **fields):
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    mask[5:25, 10 + seed : 35 + seed] = True
    fields = fields or {"mask": mask}
    return Reference(rng.integers(0, 256, (*size, 3), dtype=np.uint8), label=label, **fields)


def asked(*references, seed=9, size=(50, 44)):
    return Query(
        np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8),
        references=references,
    )


def logits_of(model, query):
    prompt = model.references.prompts([(query.image, list(query.references))], model.cache)[0]
    return model.decoder.decode(model.decoder.encode([query.image]), torch.tensor([0]), prompt)[0]


@torch.inference_mode()
def test_batched_is_one_by_one(model):
    queries = [
        asked(shown(0)),
        asked(shown(1), shown(2, "cat"), seed=3),
        asked(shown(3, "dog")),
        asked(shown(0), shown(1)),
    ]
    groups = [(q.image, list(q.references)) for q in queries]
    together = model.references.prompts(groups, model.cache)
    for prompt, group in zip(together, groups, strict=True):
        alone = model.references.prompts([group], model.cache)[0]
        assert torch.allclose(prompt.tokens, alone.tokens, atol=1e-5)


@torch.inference_mode()
def test_the_order_of_references_does_not_matter(model):
    a = logits_of(model, asked(shown(0), shown(1), shown(2)))
    assert torch.allclose(a, logits_of(model, asked(shown(2), shown(0), shown(1))), atol=1e-4)


@torch.inference_mode()
def test_one_reference_twice_is_one_reference(model):
    once = logits_of(model, asked(shown(0)))
    assert torch.allclose(once, logits_of(model, asked(*[shown(0)] * 3)), atol=1e-3)


@torch.inference_mode()
def test_fifty_references(model):
    answer = model(asked(*[shown(i % 5) for i in range(50)]))
    assert answer.status == "found" and len(answer.masks) == 1 and len(answer.references) == 50
    assert sum(r["weight"] for r in answer.references) == pytest.approx(1, abs=0.01)


@torch.inference_mode()
def test_mask_and_label_matter(model):
    plain = logits_of(model, asked(shown(0)))
    other = np.zeros((40, 60), bool)
    other[30:, :9] = True
    assert not torch.allclose(plain, logits_of(model, asked(shown(0, mask=other))), atol=1e-3)
    assert not torch.allclose(plain, logits_of(model, asked(shown(0, "cat"))), atol=1e-3)


def test_a_mask_a_label(model):
    answer = model(asked(shown(0, "cat"), shown(1, "dog"), shown(2, "cat")))
    assert answer.labels == ["cat", "dog"] and len(answer.masks) == 2
    alone = model(asked(shown(0, "cat"), shown(2, "cat")))
    assert np.array_equal(answer.masks[0], alone.masks[0])


def test_agreement_of_each_reference(model):
    answer = model.batch([asked(shown(0), shown(1))], agreement=True)[0]
    assert [0 <= r["agreement"] <= 1 for r in answer.references] == [True, True]
    same = model.batch([asked(shown(0), shown(0))], agreement=True)[0]
    assert all(r["agreement"] > 0.99 for r in same.references)


def test_a_click_and_a_mask_to_correct_stand_beside(model):
    query = asked(shown(0))
    previous = np.zeros(query.size, bool)
    previous[:10] = True
    plain = model(query)
    clicked = model(
        Query(query.image, references=query.references, points=[(30, 30, 1)], previous=previous)
    )
    assert len(clicked.masks) == 1 and not np.array_equal(plain.masks, clicked.masks)


@pytest.mark.parametrize("kind", ["mask", "boxes", "points", "scribble"])
def test_every_way_to_mark(model, kind):
    line = np.zeros((40, 60), bool)
    line[10, 10:30] = True
    fields = {
        "mask": line,
        "boxes": [(10, 5, 35, 25)],
        "points": [(20, 12, 1), (50, 30, 0)],
        "scribble": line,
    }
    assert model(asked(shown(0, **{kind: fields[kind]}))).status == "found"


def test_regions():
    image = np.zeros((100, 200, 3), np.uint8)
    box = region(Reference(image, boxes=[(10, 20, 30, 40)]))
    assert box.sum() == 400 and box[20:40, 10:30].all()
    points = region(Reference(image, points=[(50, 50, 1), (150, 50, 1), (150, 52, 0)]))
    assert points[50, 50] and points[50, 45] and not points[50, 60] and not points[52, 150]
    line = np.zeros((100, 200), bool)
    line[50, 20:80] = True
    widened = region(Reference(image, scribble=line))
    assert widened[48:53, 30].all() and not widened[46, 30] and widened.sum() > 4 * line.sum()
    for empty in (
        {"mask": np.zeros((100, 200), bool)},
        {"points": [(5, 5, 0)]},
        {"scribble": np.zeros((100, 200), bool)},
    ):
        with pytest.raises(InputError, match="marks nothing"):
            region(Reference(image, **empty))


def test_a_full_mask_and_the_picture_itself(model):
    picture = asked(shown(0)).image
    assert (
        model(
            Query(picture, references=[Reference(picture, mask=np.ones(picture.shape[:2], bool))])
        ).status
        == "found"
    )


def test_masks_as_people_save_them(tmp_path, picture):
    from PIL import Image

    thing = np.zeros(picture.shape[:2], bool)
    thing[3:20, 8:30] = True
    Image.fromarray(picture).save(tmp_path / "i.png")
    colours = np.zeros((*thing.shape, 3), np.uint8)
    colours[thing] = (200, 30, 90)
    for values in (thing.astype(np.uint8), thing.astype(np.uint8) * 255, colours):
        Image.fromarray(values).save(tmp_path / "m.png")
        assert np.array_equal(Reference.open(tmp_path / "i.png", tmp_path / "m.png").mask, thing)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="resize one"):
        Reference.open(tmp_path / "i.png", tmp_path / "m.png")


def test_a_common_label():
    assert common_label([shown(0, "a"), shown(1, "a ")]) == "a"
    assert common_label([shown(0, "a"), shown(1)]) is None and common_label([shown(0, " ")]) is None


def test_positions_tell_places_apart():
    positions = sine_positions(6, 32)
    assert positions.shape == (36, 32) and len({tuple(p.tolist()) for p in positions}) == 36


def test_saved_and_read_again(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again, query = (
        Segmenter.from_pretrained(tmp_path / "m", device="cpu"),
        asked(shown(0, "cat"), shown(1, "cat")),
    )
    assert np.array_equal(model(query).masks, again(query).masks)
    (tmp_path / "m" / "references.safetensors").unlink()
    with pytest.raises(InputError, match="references"):
        Segmenter.from_pretrained(tmp_path / "m", device="cpu")


def test_parts_that_do_not_fit_are_refused():
    from reasonseg.prompters.examples import Config as Examples

    with pytest.raises(InputError, match="makes examples, the decoder takes tokens"):
        Segmenter.build(
            ModelSettings(Kind("sam", SamConfig.example()), references=Kind("examples", Examples()))
        )
    with pytest.raises(InputError, match="needs a backbone with its prompter"):
        ModelSettings(Kind("sam", SamConfig.example()))


def test_gradients_reach_everything_that_learns(model):
    model.requires_grad_(True).train()
    vlp = model.references
    query, references = torch.randn(2, 64, 24), torch.randn(2, 3, 64, 24)
    masks = (torch.rand(2, 3, 24, 24) > 0.5).float()
    vlp(query, references, masks, torch.randn(2, 24)).tokens.square().sum().backward()
    assert all(
        p.grad is not None for name, p in vlp.named_parameters() if not name.startswith("clip.")
    )
    model.zero_grad(), model.eval()
