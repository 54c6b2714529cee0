"""SegGPT against what the original implementation printed (../shared/oracle/F_seggpt), and against itself."""

import json

import numpy as np
import pytest
import torch
from conftest import close, oracle
from PIL import Image
from transformers import SegGptForImageSegmentation

from reasonseg import losses
from reasonseg.decoders import seggpt
from reasonseg.decoders.seggpt import Config, arranged, restored
from reasonseg.prompt import Canvas, Painted, Prompt, palette

CANVAS, FRAME = 3e-4, 0.02  # tolerances the oracle suggests
CASES = ("one_sem", "one_ins", "two_sem_q1", "three_ins", "three_ins_q1", "three_ins_perm", "pal_one", "pal_three")


@pytest.fixture(scope="module")
def model():
    return Config().load(oracle("F_seggpt", "hf", "config.json").parent, dtype=torch.float32).eval()


def case(name):
    return np.load(oracle("F_seggpt", f"{name}.npz")), json.loads(oracle("F_seggpt", "cases.json").read_text())["cases"][name]


def picture(name):
    return np.array(Image.open(oracle("F_seggpt", "images", name)).convert("RGB"))


def painted(model, name):
    """A mask's colours as the model takes them: nearest, squashed, normalised."""
    side = model.side
    image = np.array(Image.open(oracle("F_seggpt", "images", name)).convert("RGB").resize((side, side), Image.Resampling.NEAREST))
    return (torch.from_numpy(image).permute(2, 0, 1) / 255 - model.mean) / model.std


def parts(model, about):
    query = model.encode([picture(about["query"])]).embedding
    images = model.encode([picture(p) for p in about["prompts"]]).embedding[None]
    return query, images, torch.stack([painted(model, t) for t in about["targets"]])[None]


def even(count):
    return torch.full((1, count), 1 / count)


def every(found, data, key):
    """Compares with `key`, stored whole or thinned out (`key_every4`)."""
    for stored in data.files:
        if stored == key or stored.startswith(key + "_every"):
            step = int(stored.rsplit("every", 1)[1]) if stored != key else 1
            return found[..., ::step, ::step], data[stored]
    raise KeyError(key)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_canvas_and_masks(model, name):
    data, about = case(name)
    query, images, targets = parts(model, about)
    found, expected = every(torch.cat([images[0], query.expand_as(images[0])], 2), data, "imgs")
    close(f"F {name}", "pictures", found, expected, atol=2e-5)
    found, expected = every(torch.cat([targets[0], targets[0]], 2), data, "tgts")
    close(f"F {name}", "painted references", found, expected, atol=2e-5)
    canvas = model.run(query, images, targets, even(about["n"]), True, about["seg_type"])
    found, expected = every(canvas[0], data, "canvas")
    close(f"F {name}", "canvas", found[:1], expected[:1], atol=CANVAS)
    if "hard_res_packed" in data:
        lower = (canvas[0, 0, :, model.side :] * model.std + model.mean).clamp(0, 1)
        logits = seggpt.likeness(lower, palette(1), 0)[None]
        for size, key in (((model.side, model.side), "hard_res_packed"), (tuple(data["size_hw"]), "hard_full_packed")):
            hard = np.unpackbits(data[key])[: size[0] * size[1]].reshape(size).astype(bool)
            assert ((model.restore(logits, size)[0] > 0).numpy() ^ hard).sum() <= 3


@torch.inference_mode()
def test_ensemble_off_is_transformers(model):
    data, about = case("three_ins")
    query, images, targets = parts(model, about)
    apart = model.run(query, images, targets, even(3), False, "instance")
    close("F three_ins", "canvas, ensemble off", apart[0, :, :, ::4, ::4], data["canvas_noens_every4"], atol=CANVAS)
    plain = SegGptForImageSegmentation.from_pretrained(oracle("F_seggpt", "hf", "config.json").parent).eval()
    theirs = plain(pixel_values=query.expand(3, -1, -1, -1), prompt_pixel_values=images[0], prompt_masks=targets[0], embedding_type="instance")
    close("F three_ins", "transformers, ensemble off", apart[0], theirs.pred_masks, atol=CANVAS)


@torch.inference_mode()
def test_pictures_of_a_batch_do_not_meet(model):
    both = [parts(model, case(name)[1]) for name in ("three_ins", "three_ins_q1")]
    query, images, targets = (torch.cat(group) for group in zip(*both, strict=True))
    together = model.run(query, images, targets, even(3).expand(2, -1), True, "instance")
    for i, (q, im, t) in enumerate(both):
        alone = model.run(q, im, t, even(3), True, "instance")
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_palette_is_that_of_transformers():
    stored = np.load(oracle("F_seggpt", "palette.npz"))
    for key in (k for k in stored.files if k.startswith("palette_")):
        labels = int(key.removeprefix("palette_"))
        assert np.array_equal((palette(labels) * 255).round().int().numpy(), stored[key]), key


def test_labels_of_several_classes(model):
    stored, side = np.load(oracle("F_seggpt", "palette.npz")), model.side
    for name in ("pal_one", "pal_three"):
        data, about = case(name)
        query, images, targets = parts(model, about)
        canvas = Canvas(images[0], targets[0], palette(4), even(about["n"])[0], type=about["seg_type"])
        prompt = Prompt(torch.zeros(4, 0, 0), examples=tuple(Painted(canvas, k) for k in range(4)))
        with torch.inference_mode():
            logits, _ = model.decode(model.encode([picture(about["query"])]), torch.zeros(4, dtype=torch.long), prompt)
        labels = stored[f"{name}_labels_res"]
        assert labels.shape == (side, side)
        for k in range(4):
            assert ((logits[k] > 0).numpy() ^ (labels == k + 1)).sum() <= 3


@pytest.mark.parametrize("row", ["a", "b"])
def test_training_loss_and_gradients(model, row):
    """Random patches masked over the whole canvas, two rows; `a` has a type per row and pixels that do not count."""
    data, about = case("train")
    rows = about["rows"]
    masked = torch.from_numpy(data["bool_masked_pos"]).bool()
    seen = model.encode([picture(p) for r in rows for p in r["imgs"]]).embedding.unflatten(0, (2, 2))
    drawn = torch.stack([torch.stack([painted(model, t) for t in r["tgts"]]) for r in rows])
    types = ["instance" if t else "semantic" for t in data[f"{row}_seg_type"].ravel()]
    model.zero_grad()
    canvas = torch.cat([
        model.run(seen[i : i + 1, 1], seen[i : i + 1, :1], drawn[i : i + 1, :1], even(1), False, types[i], masked[i : i + 1], drawn[i : i + 1, 1])[0]
        for i in range(2)
    ])  # fmt: skip
    close(f"F train_{row}", "canvas", canvas[..., ::4, ::4], data[f"{row}_canvas_every4"], atol=CANVAS)
    height, width = canvas.shape[2:]
    pixels = masked.reshape(2, 1, height // 16, width // 16).float()
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="nearest")[:, 0]
    valid = torch.from_numpy(np.unpackbits(data[f"{row}_valid_packed"])[: 2 * height * width].reshape(2, height, width))
    loss = losses.painting(canvas, torch.cat([drawn[:, 0], drawn[:, 1]], 2), pixels, valid)
    assert float(loss) == pytest.approx(float(data[f"{row}_loss"]), rel=1e-5)
    loss.backward()
    names = json.loads(oracle("F_seggpt", "key_map.json").read_text())
    norms = json.loads(oracle("F_seggpt", f"train_{row}_grad_norms.json").read_text())
    ours = dict(model.model.named_parameters())
    compared = 0
    for theirs, norm in norms.items():
        grad = ours[names[theirs]].grad
        found = 0.0 if grad is None else float(grad.norm())
        assert found == pytest.approx(norm, rel=2e-3, abs=1e-6), theirs
        compared += 1
    assert compared > 300


@pytest.mark.parametrize("turn", range(8))
def test_arrangements_are_undone(turn):
    square = torch.arange(25.0).reshape(1, 5, 5)
    assert torch.equal(restored(arranged(square, turn), turn), square)


def test_eight_arrangements_differ():
    square = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(arranged(square, turn).flatten().tolist()) for turn in range(8)}) == 8
