"""What every decoder must do, whichever file it lives in."""

import numpy as np
import pytest
import torch

from reasonseg.config import kinds as config
from reasonseg.nn.prompt import Prompt

# which learns in context: test_seggpt.py
KINDS = [k for k in config.kinds("decoders") if k != "seggpt"]
SIZES = [(50, 40), (33, 64), (64, 64), (1, 7)]


def test_the_walk_sees_kinds():
    assert {"sam", "sam2"} <= set(KINDS)


@pytest.fixture(scope="module", params=KINDS)
def decoder(request):
    torch.manual_seed(0)
    decoder = config.config_class("decoders", request.param).example().build().eval()
    for weight in decoder.model.mask_decoder.parameters():  # fresh SAM weights draw next to nothing
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return decoder


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@torch.no_grad()
def test_masks_come_in_the_frame_of_the_image(decoder, images):
    features = decoder.encode(images)
    for i, size in enumerate(SIZES):
        prompt = Prompt(torch.randn(3, 2, decoder.width))
        logits, scores = decoder.decode(features, torch.full((3,), i), prompt)
        assert logits.shape == (3, decoder.side, decoder.side) and scores.shape == (3,)
        assert decoder.restore(logits, size).shape == (3, *size)


@torch.no_grad()
def test_batched_equals_one_by_one_and_order_does_not_matter(decoder, images):
    tokens, of = torch.randn(6, 1, decoder.width), torch.tensor([0, 1, 1, 2, 0, 3])
    together, scores = decoder.decode(decoder.encode(images), of, Prompt(tokens))
    for m in range(6):
        alone, score = decoder.decode(
            decoder.encode([images[of[m]]]), torch.tensor([0]), Prompt(tokens[m : m + 1])
        )
        assert torch.allclose(together[m], alone[0], atol=1e-4) and torch.allclose(
            scores[m], score[0], atol=1e-4
        )
    turned, _ = decoder.decode(decoder.encode(images), of.flip(0), Prompt(tokens.flip(0)))
    assert torch.allclose(turned.flip(0), together, atol=1e-4)


@torch.no_grad()
def test_no_prompt_no_mask(decoder, images):
    blank = Prompt(torch.zeros(0, 1, decoder.width))
    logits, scores = decoder.decode(
        decoder.encode(images[:1]), torch.zeros(0, dtype=torch.long), blank
    )
    assert len(logits) == len(scores) == 0
    assert decoder.restore(logits, SIZES[0]).shape == (0, *SIZES[0])


@torch.no_grad()
def test_places_and_dense_prompts(decoder, images):
    features = decoder.encode(images[:1])
    points = decoder.places([(3, 4, 1), (20, 30, 0)], [], SIZES[0])
    boxes = decoder.places([], [(2, 3, 20, 30)], SIZES[0])
    both = decoder.places([(3, 4, 1)], [(2, 3, 20, 30)], SIZES[0])
    for prompt in (points, boxes, both):
        assert prompt.tokens.shape[0] == 1 and prompt.tokens.shape[2] == decoder.width
    assert both.tokens.shape[1] > boxes.tokens.shape[1] >= 2
    other = decoder.places([], [(12, 3, 30, 40)], SIZES[0])
    assert not torch.allclose(boxes.tokens, other.tokens)
    plain, _ = decoder.decode(features, torch.tensor([0]), boxes)
    mask = np.zeros(SIZES[0], bool)
    mask[10:30, 5:25] = True
    started, _ = decoder.decode(
        features, torch.tensor([0]), Prompt(boxes.tokens, decoder.dense(mask))
    )
    assert not torch.allclose(plain, started, atol=1e-5)


@torch.no_grad()
def test_a_dense_prompt_keeps_its_place(decoder):
    mask = np.zeros((40, 80), bool)
    mask[:20, 40:] = True
    logits = decoder.restore(decoder.dense(mask)[:, 0], (40, 80))[0]
    assert ((logits > 0).numpy() == mask).mean() > 0.93


def test_gradients_reach_tokens_and_masks_but_not_what_is_frozen(decoder, images):
    decoder.requires_grad_(True)
    decoder.encoder.requires_grad_(False)
    tokens = torch.randn(2, 1, decoder.width, requires_grad=True)
    logits, scores = decoder.decode(
        decoder.encode(images[:1]), torch.tensor([0, 0]), Prompt(tokens)
    )
    (logits.square().mean() + scores.mean()).backward()
    assert tokens.grad.abs().sum() > 0
    assert decoder.model.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in decoder.encoder.parameters())


@torch.no_grad()
def test_saved_and_loaded_draws_the_same(decoder, images, tmp_path):
    decoder.save(tmp_path)
    kind = type(decoder).__module__.rsplit(".", 1)[-1]
    loaded = config.config_class("decoders", kind)().load(tmp_path).eval()
    prompt = Prompt(torch.randn(2, 1, decoder.width))
    of = torch.tensor([0, 1])
    ours, _ = decoder.decode(decoder.encode(images), of, prompt)
    theirs, _ = loaded.decode(loaded.encode(images), of, prompt)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert loaded.pixels == decoder.pixels


@torch.no_grad()
def test_neighbouring_points_resemble_each_other(decoder):
    near, nearer, far = (
        decoder.places([p], [], (64, 64)).tokens[0, 0]
        for p in ((20, 20, 1), (21, 20, 1), (50, 45, 1))
    )
    assert torch.nn.functional.cosine_similarity(near, nearer, dim=0) > 0.9
    assert (near - nearer).norm() < (near - far).norm()
