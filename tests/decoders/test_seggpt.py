"""SegGPT against what the original implementation printed (../shared/oracle/F_seggpt), and
against itself.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity import close, oracle
from PIL import Image
from transformers import SegGptForImageSegmentation

from reasonseg import InputError, Query, Reference, Segmenter
from reasonseg.decoders import seggpt
from reasonseg.decoders.seggpt import Config, arranged, restored
from reasonseg.nn import canvas, losses
from reasonseg.nn.prompt import Canvas, Painted, Prompt, palette
from reasonseg.prompters.examples import Config as ExamplesConfig

CANVAS, FRAME = 3e-4, 0.02  # tolerances the oracle suggests
CASES = (
    "one_sem",
    "one_ins",
    "two_sem_q1",
    "three_ins",
    "three_ins_q1",
    "three_ins_perm",
    "pal_one",
    "pal_three",
)


@pytest.fixture(scope="module")
def model():
    return Config().load(oracle("F_seggpt", "hf", "config.json").parent, dtype=torch.float32).eval()


def case(name):
    return np.load(oracle("F_seggpt", f"{name}.npz")), json.loads(
        oracle("F_seggpt", "cases.json").read_text(encoding="utf-8")
    )["cases"][name]


def picture_of(name):
    return np.array(Image.open(oracle("F_seggpt", "images", name)).convert("RGB"))


def painted(model, name):
    """A mask's colours as the model takes them: nearest, squashed, normalised."""
    side = model.side
    image = np.array(
        Image.open(oracle("F_seggpt", "images", name))
        .convert("RGB")
        .resize((side, side), Image.Resampling.NEAREST)
    )
    return (torch.from_numpy(image).permute(2, 0, 1) / 255 - model.mean) / model.std


def parts(model, about):
    query = model.encode([picture_of(about["query"])]).embedding
    images = model.encode([picture_of(p) for p in about["prompts"]]).embedding[None]
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
        for size, key in (
            ((model.side, model.side), "hard_res_packed"),
            (tuple(data["size_hw"]), "hard_full_packed"),
        ):
            hard = np.unpackbits(data[key])[: size[0] * size[1]].reshape(size).astype(bool)
            assert ((model.restore(logits, tuple(map(int, size)))[0] > 0).numpy() ^ hard).sum() <= 3


@torch.inference_mode()
def test_ensemble_off_is_transformers(model):
    data, about = case("three_ins")
    query, images, targets = parts(model, about)
    apart = model.run(query, images, targets, even(3), False, "instance")
    close(
        "F three_ins",
        "canvas, ensemble off",
        apart[0, :, :, ::4, ::4],
        data["canvas_noens_every4"],
        atol=CANVAS,
    )
    plain = SegGptForImageSegmentation.from_pretrained(
        oracle("F_seggpt", "hf", "config.json").parent
    ).eval()
    theirs = plain(
        pixel_values=query.expand(3, -1, -1, -1),
        prompt_pixel_values=images[0],
        prompt_masks=targets[0],
        embedding_type="instance",
    )
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
        canvas = Canvas(
            images[0], targets[0], palette(4), even(about["n"])[0], type=about["seg_type"]
        )
        prompt = Prompt(torch.zeros(4, 0, 0), examples=tuple(Painted(canvas, k) for k in range(4)))
        with torch.inference_mode():
            logits, _ = model.decode(
                model.encode([picture_of(about["query"])]), torch.zeros(4, dtype=torch.long), prompt
            )
        labels = stored[f"{name}_labels_res"]
        assert labels.shape == (side, side)
        for k in range(4):
            assert ((logits[k] > 0).numpy() ^ (labels == k + 1)).sum() <= 3


@pytest.mark.parametrize("row", ["a", "b"])
def test_training_loss_and_gradients(model, row):
    """Random patches masked over the whole canvas, two rows; `a` has a type per row and pixels
    that do not count.
    """
    data, about = case("train")
    rows = about["rows"]
    masked = torch.from_numpy(data["bool_masked_pos"]).bool()
    seen = model.encode([picture_of(p) for r in rows for p in r["imgs"]]).embedding.unflatten(
        0, (2, 2)
    )
    drawn = torch.stack([torch.stack([painted(model, t) for t in r["tgts"]]) for r in rows])
    types = ["instance" if t else "semantic" for t in data[f"{row}_seg_type"].ravel()]
    model.zero_grad()
    rows = [slice(0, 1), slice(1, 2)]
    canvas = torch.cat(
        [
            model.run(
                seen[r, 1],
                seen[r, :1],
                drawn[r, :1],
                even(1),
                False,
                types[r.start],
                masked[r],
                drawn[r, 1],
            )[0]
            for r in rows
        ]
    )
    close(
        f"F train_{row}", "canvas", canvas[..., ::4, ::4], data[f"{row}_canvas_every4"], atol=CANVAS
    )
    height, width = canvas.shape[2:]
    pixels = masked.reshape(2, 1, height // 16, width // 16).float()
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="nearest")[:, 0]
    valid = torch.from_numpy(
        np.unpackbits(data[f"{row}_valid_packed"])[: 2 * height * width].reshape(2, height, width)
    )
    loss = losses.painting(canvas, torch.cat([drawn[:, 0], drawn[:, 1]], 2), pixels, valid)
    assert float(loss) == pytest.approx(float(data[f"{row}_loss"]), rel=1e-5)
    loss.backward()
    names = json.loads(oracle("F_seggpt", "key_map.json").read_text(encoding="utf-8"))
    norms = json.loads(
        oracle("F_seggpt", f"train_{row}_grad_norms.json").read_text(encoding="utf-8")
    )
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


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    """The oracle's weights as the original code saves them."""
    stored, file = (
        np.load(oracle("F_seggpt", "state_dict.npz")),
        tmp_path_factory.mktemp("seggpt") / "seggpt.pth",
    )
    torch.save({"model": {k: torch.from_numpy(stored[k]).float() for k in stored}}, file)
    return file


def query_of(about):
    references = [
        Reference(picture_of(p), mask=picture_of(t).any(-1))
        for p, t in zip(about["prompts"], about["targets"], strict=True)
    ]
    return Query(picture_of(about["query"]), references=references)


def test_both_layouts_are_one_model(pth):
    hub = Segmenter.from_pretrained(oracle("F_seggpt", "hf", "config.json").parent, device="cpu")
    original = Segmenter.from_pretrained(pth, device="cpu")
    ours, theirs = original.decoder.model.state_dict(), hub.decoder.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    data, about = case("three_ins")
    if all(len(np.unique(picture_of(t).reshape(-1, 3), axis=0)) == 2 for t in about["targets"]):
        hard = (
            np.unpackbits(data["hard_full_packed"])[: int(np.prod(data["size_hw"]))]
            .reshape(data["size_hw"])
            .astype(bool)
        )
        assert (original(query_of(about)).masks[0] ^ hard).sum() <= 3


def test_saved_and_read_again(pth, tmp_path):
    segmenter = Segmenter.from_pretrained(pth, device="cpu")
    segmenter.save_pretrained(tmp_path / "m")
    query = query_of(case("three_ins")[1])
    assert np.array_equal(
        Segmenter.from_pretrained(tmp_path / "m", device="cpu")(query).masks, segmenter(query).masks
    )


def test_batched_is_one_by_one(pth):
    segmenter = Segmenter.from_pretrained(pth, device="cpu")
    queries = [
        query_of(case(name)[1]) for name in ("one_ins", "three_ins", "three_ins_q1", "two_sem_q1")
    ]
    for together, query in zip(segmenter.batch(queries), queries, strict=True):
        assert (together.masks ^ segmenter(query).masks).sum() <= 3


@pytest.mark.parametrize(
    "how", [{"ensemble": "spatial"}, {"ensemble": "mean"}, {"arrangements": 8}, {"together": True}]
)
def test_other_ways_to_fuse(pth, how):
    segmenter = Segmenter.from_pretrained(pth, device="cpu")
    kind = replace(segmenter.settings.references, config=ExamplesConfig(**how))
    segmenter = segmenter.with_references(kind)
    query = query_of(case("three_ins")[1])
    for reference, label in zip(query.references, "aab", strict=True):
        reference.label = label
    answer = segmenter(query)
    assert answer.labels == ["a", "b"] and answer.masks.shape[1:] == query.size
    if how.get("together"):
        assert not (answer.masks[0] & answer.masks[1]).any()


def test_refined_by_sam(pth):
    sam = np.load(oracle("B_sam", "state_dict.npz"))
    file = pth.with_name("sam.pth")
    torch.save({k: torch.from_numpy(sam[k]).float() for k in sam}, file)
    segmenter = Segmenter.from_pretrained(pth, sam=str(file), device="cpu")
    query = query_of(case("one_ins")[1])
    assert segmenter(query, refine=True).masks.shape == segmenter(query).masks.shape
    with pytest.raises(InputError, match="no refiner"):
        Segmenter.from_pretrained(pth, device="cpu")(query, refine=True)


def test_what_it_cannot_take_is_refused(pth, picture):
    segmenter = Segmenter.from_pretrained(pth, device="cpu")
    with pytest.raises(InputError, match="reads no words"):
        segmenter(Query(picture, "the cat"))
    with pytest.raises(InputError, match="need a SAM decoder"):
        segmenter(Query(picture, points=[(3, 3, 1)]))
    with pytest.raises(InputError, match="template is of models that read words"):
        Segmenter.from_pretrained(pth, template="plain", device="cpu")


def test_in_bfloat16(pth):
    segmenter = Segmenter.from_pretrained(pth, device="cpu", dtype="bfloat16")
    query = query_of(case("three_ins")[1])
    assert segmenter(query).masks.shape == (1, *query.size)
    assert segmenter.references.patch_encoder.encode([query.image]).dtype == torch.bfloat16


def test_labels_of_one_canvas_are_those_of_one_question(pth):
    segmenter = Segmenter.from_pretrained(pth, device="cpu")
    segmenter = segmenter.with_references(
        replace(segmenter.settings.references, config=ExamplesConfig(together=True))
    )
    first, second = query_of(case("one_ins")[1]), query_of(case("one_ins")[1])
    second = replace(second, image=first.image)
    together = segmenter.batch([first, second])
    assert all((a.masks ^ segmenter(first).masks).sum() <= 3 for a in together)


@torch.inference_mode()
def test_at_another_size(model):
    """A canvas of 896 x 448 for weights made for 224 x 112: positions are resized as the
    original resizes them.
    """
    data, about = case("native448_two")
    wide = seggpt.SegGpt(
        copy.deepcopy(model.model), replace(model.pixels, size=about["frame"]), model.config
    )
    query, images, targets = parts(wide, about)
    canvas = wide.run(query, images, targets, even(2), True, about["seg_type"])[0]
    close(
        "F native448_two",
        "canvas",
        canvas[:1, :, ::16, ::16],
        data["canvas_every16"][:1],
        atol=CANVAS,
    )
    side = wide.side
    close(
        "F native448_two",
        "seam",
        canvas[:1, :, side - 2 : side + 3],
        data["canvas_seam"][:1],
        atol=CANVAS,
    )


@pytest.mark.parametrize("name", ["video_prompt", "video_first"])
@torch.inference_mode()
def test_frames_of_a_video(model, name):
    """Earlier frames with what was found in them are references beside the first: the original's
    video loop.
    """
    data, about = case(name)
    encode = lambda file: model.encode([picture_of(file)]).embedding  # noqa: E731
    first, earlier = (encode(about["prompt"]), painted(model, about["target"])[None]), []
    for t, file in enumerate(about["frames"]):
        frame, shown = encode(file), [first, *earlier]
        assert len(shown) == int(data[f"n_{t}"])
        images, targets = (torch.cat(group)[None] for group in zip(*shown, strict=True))
        upper = targets[0, :, :, : model.side : 8, ::8]
        close(
            f"F {name} {t}",
            "painted references",
            upper,
            data[f"tgts_every8_{t}"][:, :, :14],
            atol=2e-5,
        )
        lower = model.run(
            frame, images, targets, even(len(shown)), len(shown) > 1, about["seg_type"]
        )[0, 0, :, model.side :]
        colors = (lower * model.std + model.mean).clamp(0, 1)
        close(
            f"F {name} {t}",
            "output",
            255 * colors.permute(1, 2, 0)[::4, ::4],
            data[f"output_every4_{t}"],
            atol=FRAME,
        )
        hard = seggpt.likeness(colors, palette(1), 0) > 0
        stored = (
            np.unpackbits(data[f"hard_packed_{t}"])[: hard.numel()].reshape(hard.shape).astype(bool)
        )
        assert (hard.numpy() ^ stored).sum() <= 3
        kept = torch.from_numpy(stored).expand(1, 3, -1, -1).float()
        earlier = [*earlier, (frame, (kept - model.mean) / model.std)][-about["num_frames"] :]


def test_without_relative_positions():
    """transformers has such layers; they attend alike here and there."""
    from transformers import SegGptConfig
    from transformers.models.seggpt.modeling_seggpt import SegGptAttention

    network = {**Config.example().network, "use_relative_position_embeddings": False}
    layer = SegGptAttention(SegGptConfig(**network)).eval()
    states = torch.randn(2, 12, 6, 32)
    torch.testing.assert_close(canvas.attend(layer, states), layer(states)[0])


def test_pictures_enter_as_they_did_when_it_was_saved(tmp_path):
    """Another mean than the released one's comes back with the weights."""
    made = replace(
        Config.example(), pixels={"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    ).build()
    made.save(tmp_path)
    again = Config().load(tmp_path, dtype=torch.float32)
    assert (again.pixels.size, again.pixels.aspect) == (
        made.pixels.size,
        "squash",
    ) and again.pixels.mean == (
        0.5,
        0.5,
        0.5,
    )
    assert torch.equal(again.mean, made.mean) and torch.equal(again.std, made.std)
