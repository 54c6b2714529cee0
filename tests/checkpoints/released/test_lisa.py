"""LISA's checkpoint layout against what the reference implementation printed on it
(../shared/oracle/A_lisa).
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import close, oracle
from PIL import Image

from reasonseg import Answer, Query, Sample, Segmenter
from reasonseg.checkpoints.released import llava, sam
from reasonseg.nn.prompt import Prompt

EVALS = ["eval_0", "eval_1", "eval_2", "eval_3", "eval_4_truncated"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return oracle("A_lisa")


@pytest.fixture(scope="module")
def models(folder):
    return {
        t: Segmenter.from_pretrained(folder / "checkpoint", template=t)
        for t in ("llava_v1", "llava_llama_2")
    }


def cases(folder, name):
    return {
        case["name"]: case
        for case in json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    }


def picture(folder, name):
    return np.array(Image.open(folder / name).convert("RGB"))


def folded(ids, image, patches=256):
    """Expanded ids as the reference writes them: one -200 for the image."""
    start = ids.index(image)
    return ids[: start + 1] + ids[start + patches :]


@pytest.mark.parametrize("name", EVALS)
def test_evaluate(folder, models, name):
    case, expected = cases(folder, "eval_cases")[name], np.load(folder / f"{name}.npz")
    model = models[case["conv_type"]]
    image = picture(folder, case["image"])
    query = Query(image, case["question"])
    given = expected["input_ids"][0].tolist()
    assert folded(model.backbone.prompt_ids(query), model.backbone.image_id) == given

    how = {"temperature": 0.0, "seed": 0, "force_seg": False, "absent_threshold": 0.5}
    said = model.backbone.generate([query], max_new_tokens=case["max_new_tokens"], **how)[0]
    assert said.ids == expected["output_ids"][0].tolist()[len(given) :]
    with torch.inference_mode():
        states = said.states[[t for t, i in enumerate(said.ids) if i == model.backbone.markers.seg]]
        prompt = model.prompter(states)
        logits, quality = model.decoder.decode(
            model.decoder.encode([image]), torch.zeros(len(prompt), dtype=torch.long), prompt
        )
        full = model.decoder.restore(logits, query.size)
    close(name, "state that predicts [SEG]", states, expected["seg_hidden"])
    close(name, "prompt token", prompt.tokens, expected["text_embeds"])
    close(name, "mask logits, original size", full, expected["pred_masks"])
    close(name, "predicted IoU", quality, expected["iou"][:, 0])
    if "low_res_logits_every2" in expected:
        close(
            name,
            "low-resolution logits",
            logits[:, ::2, ::2],
            expected["low_res_logits_every2"][:, 0],
        )

    answer = model(query, max_new_tokens=case["max_new_tokens"])
    assert answer.status == ("found" if case["n_seg"] else "no_seg")
    flipped = (answer.masks != (expected["pred_masks"] > 0)).sum()
    close(name, "mask pixels that differ", flipped, 0, atol=4)
    assert answer.text.count("[SEG]") == case["n_seg"]
    squeezed = re.sub(r"\s+", "", case["decoded_new"]).removesuffix("</s>")
    assert re.sub(r"\s+", "", answer.text) == squeezed


def test_image_places_in_a_users_words_are_taken_out(folder, models):
    """LISA's tokenizer has no `<image>`, and users paste it all the same; in earlier turns too."""
    image = picture(folder, "images/img0.png")
    model = models["llava_v1"]
    plain = model.backbone.prompt_ids(Query(image, "the cup"))
    assert model.backbone.prompt_ids(Query(image, "<image>the <im_end>cup")) == plain
    turn = Query(image, "the cup", history=[("<image> a dog?", "<im_start>It is [SEG].")])
    assert model.backbone.prompt_ids(turn).count(model.backbone.image_id) == 256
    assert model(turn, max_new_tokens=2).meta["seconds"] > 0


def test_a_batch_answers_as_one_by_one(folder, models):
    chosen = [c for c in cases(folder, "eval_cases").values() if c["conv_type"] == "llava_v1"]
    queries = [Query(picture(folder, c["image"]), c["question"]) for c in chosen]
    together = models["llava_v1"].batch(queries)
    for query, answer in zip(queries, together, strict=True):
        alone = models["llava_v1"](query)
        assert alone.text == answer.text and (alone.masks != answer.masks).sum() <= 4


def samples_of(folder, case, expected):
    """The samples behind a `forward` case: its conversations with the given masks."""
    counts = np.diff(expected["offset"])
    images = [picture(folder, name) for name in case["images"]]
    owners = [i for i, n in enumerate(counts) for _ in range(n)]
    left = [list(expected[f"gt_masks_{i}"]) for i in range(len(images))]
    samples = []
    for owner, text in zip(owners, case["conversations"], strict=True):
        mark = " [/INST] " if "[/INST]" in text else " ASSISTANT: "
        question, answer = text.split("<im_end>\n")[1].split(mark)
        answer = answer.removesuffix("</s>").removesuffix(" " if mark == " [/INST] " else "")
        masks = [left[owner].pop(0) for _ in range(answer.count("[SEG]"))]
        size = images[owner].shape[:2]
        masks = np.array(masks, bool).reshape(-1, *size)
        status = "found" if len(masks) else "no_seg"
        truth = Answer(answer, masks, np.ones(len(masks)), [""] * len(masks), status)
        samples.append(Sample(Query(images[owner], question), truth, "", ""))
    return samples


@pytest.mark.parametrize("name", ["forward_inf_0", "forward_inf_1"])
def test_teacher_forced(folder, models, name):
    case, expected = cases(folder, "forward_cases")[name], np.load(folder / f"{name}.npz")
    model, samples = models["llava_v1"], samples_of(folder, case, expected)
    for sample, ids, labels in zip(samples, expected["input_ids"], expected["labels"], strict=True):
        prompt, answer = (
            model.backbone.prompt_ids(sample.query),
            model.backbone.answer_ids(sample.truth.text),
        )
        row = ids.tolist()
        assert row[: len(folded(prompt + answer, -200))] == folded(prompt + answer, -200)
        assert [i for i in labels if i != -100] == answer
    with torch.inference_mode():
        taught = model.backbone.teach(samples)
        prompt = model.prompter(taught.states)
        features = model.decoder.encode([samples[0].query.image])
        logits, _ = model.decoder.decode(
            features, torch.zeros(len(prompt), dtype=torch.long), prompt
        )
        full = model.decoder.restore(logits, samples[0].query.size)
    close(name, "prompt token", prompt.tokens, expected["text_embeds"])
    close(name, "mask logits, original size", full, expected["pred_masks"])


FROZEN = (  # what LISA does not train
    "backbone.model.model.vision_tower.",
    "backbone.model.model.multi_modal_projector.",
    "decoder.model.vision_encoder.",
    "decoder.model.prompt_encoder.",
    "decoder.model.shared_image_embedding.",
)


@pytest.mark.parametrize("name", ["forward_train_0", "forward_train_1_llama2"])
def test_losses_and_gradients(folder, models, name):
    case, expected = cases(folder, "forward_cases")[name], np.load(folder / f"{name}.npz")
    model = models[case["conv_type"]]
    for parameter, value in model.named_parameters():
        value.requires_grad_(not parameter.startswith(FROZEN))
    model.zero_grad()
    parts = model.loss(samples_of(folder, case, expected))
    parts["loss"].backward()
    weights = model.settings.loss
    values = {k: float(v.detach()) for k, v in parts.items()}
    close(name, "text loss", values["text"], expected["ce_loss"])
    close(name, "BCE, weighted", weights.bce * values["bce"], expected["mask_bce_loss"])
    close(name, "Dice, weighted", weights.dice * values["dice"], expected["mask_dice_loss"])
    close(name, "loss", values["loss"], expected["loss"], atol=4e-4)

    own = dict(model.named_parameters(remove_duplicate=False))
    norms = json.loads((folder / "extra" / f"{name}_grad_norms.json").read_text(encoding="utf-8"))
    assert len(norms) > 100
    gradients = [own[ours(theirs)].grad for theirs in norms]
    found = [0.0 if g is None else float(g.norm()) for g in gradients]
    close(name, f"norms of {len(norms)} gradients", found, list(norms.values()), rtol=1e-3)
    seg = model.backbone.markers.seg
    head = model.backbone.model.lm_head.weight.grad[seg]
    close(
        name,
        "gradient of the [SEG] row of the head",
        head,
        expected["grad_lm_head_seg_row"],
        rtol=1e-3,
    )
    close(
        name,
        "gradient of the prompter",
        own["prompter.mlp.2.bias"].grad,
        expected["grad_text_fc2_bias"],
        rtol=1e-3,
    )
    tokens = own["decoder.model.mask_decoder.mask_tokens.weight"].grad
    close(name, "gradient of the mask tokens", tokens, expected["grad_iou_mask_tokens"], rtol=1e-3)
    model.zero_grad()


def ours(theirs: str) -> str:
    if theirs.startswith("model.visual_model."):
        return "decoder.model." + sam.renamed(theirs.removeprefix("model.visual_model."), 3)[0]
    if theirs.startswith("model.text_hidden_fcs."):
        return theirs.replace("model.text_hidden_fcs.0.", "prompter.mlp.")
    return "backbone." + llava.target(theirs)


@pytest.mark.parametrize("name", ["img0", "img1", "img2", "large0"])
def test_preprocessing(folder, models, name):
    image, expected = (
        picture(folder, f"images/{name}.png"),
        np.load(folder / f"images/{name}_pre.npz"),
    )
    model = models["llava_v1"]
    # one level of 255 is 0.015
    close(name, "CLIP input", model.backbone.pixels(image), expected["clip"], atol=0.03)
    assert np.abs(model.backbone.pixels(image).numpy() - expected["clip"]).mean() < 2e-4
    height, width = expected["resize"]
    assert model.decoder.pixels.resized(image.shape[:2]) == (height, width)
    resized = np.array(Image.open(folder / f"images/{name}_sam_resized.png"))
    mean, std = model.decoder.pixels.mean, model.decoder.pixels.std
    framed = np.zeros((3, 1024, 1024), np.float32)
    framed[:, :height, :width] = ((resized / 255 - mean) / std).transpose(2, 0, 1)
    close(
        name,
        "SAM input, from the resized picture",
        framed[:, ::8, ::8],
        expected["sam_every8"],
        atol=1e-4,
    )
    # Pillow's versions differ by two levels
    assert np.abs(model.decoder.pixels(image).numpy() - framed).max() < 0.04


@pytest.mark.parametrize("name", ["img0", "img1", "img2"])
def test_image_embedding(folder, models, name):
    expected = np.load(folder / f"images/{name}_sam_embed_every8.npz")["embed"]
    with torch.inference_mode():
        found = (
            models["llava_v1"]
            .decoder.encode([picture(folder, f"images/{name}.png")])
            .embedding[0, :, ::8, ::8]
        )
    close(name, "SAM image embedding", found, expected, atol=5e-4)


def test_own_format_answers_the_same(folder, models, tmp_path):
    case = cases(folder, "eval_cases")["eval_1"]
    query = Query(picture(folder, case["image"]), case["question"])
    models["llava_v1"].save_pretrained(tmp_path / "lisa")
    again = Segmenter.from_pretrained(tmp_path / "lisa")
    assert not list((tmp_path / "lisa").rglob("*.bin"))
    first, second = models["llava_v1"](query), again(query)
    assert first.text == second.text and np.array_equal(first.masks, second.masks)


def test_safetensors_and_another_name_are_read_alike(folder, models, tmp_path):
    from safetensors.torch import save_file

    from reasonseg.checkpoints.released.files import Shards

    place = tmp_path / "my-weights"
    shutil.copytree(folder / "checkpoint", place, ignore=shutil.ignore_patterns("pytorch_model*"))
    save_file(
        {k: v.clone() for k, v in Shards(folder / "checkpoint").items()},
        place / "model.safetensors",
    )
    again = Segmenter.from_pretrained(place, clip=str(folder / "clip-vit-tiny-patch14"))
    for (name, a), (_, b) in zip(
        models["llava_v1"].named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_read_at_takes_the_state_of_seg_itself(folder):
    model = Segmenter.from_pretrained(folder / "checkpoint", read="at")
    case = cases(folder, "eval_cases")["eval_0"]
    query = Query(picture(folder, case["image"]), case["question"])
    expected = np.load(folder / "eval_0.npz")
    said = model.backbone.generate(
        [query],
        max_new_tokens=32,
        temperature=0.0,
        seed=0,
        force_seg=False,
        absent_threshold=0.5,
        state="at",
    )[0]
    t = said.ids.index(model.backbone.markers.seg)
    row = int(expected["seg_rows"][0]) + 1  # the row after the one that predicts it
    close("eval_0", "state at [SEG]", said.states[t + 1], expected["last_hidden"][0, row])


def test_it_can_be_taught_on(folder):
    """The reference loses its loss weights when it starts from its own checkpoint."""
    model = Segmenter.from_pretrained(folder / "checkpoint")
    expected = np.load(folder / "forward_train_0.npz")
    samples = samples_of(folder, cases(folder, "forward_cases")["forward_train_0"], expected)
    for parameter, value in model.named_parameters():
        value.requires_grad_(not parameter.startswith(FROZEN))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(samples)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0] - 0.5


def test_positional_code_follows_the_precision(folder):
    """In bf16 LISA computes SAM's positional code from bf16 coordinates; so do we, and it is not
    fp32's rounded.
    """
    exact = Segmenter.from_pretrained(folder / "checkpoint")
    rough = Segmenter.from_pretrained(folder / "checkpoint", dtype="bfloat16")
    assert {p.dtype for p in rough.parameters()} == {torch.bfloat16}
    a = exact.decoder.model.get_image_wide_positional_embeddings()
    b = rough.decoder.model.get_image_wide_positional_embeddings()
    gaussian = exact.decoder.model.shared_image_embedding.positional_embedding.detach()
    spots = (torch.arange(64, dtype=torch.bfloat16) + 0.5) / 64
    x, y = torch.meshgrid(spots, spots, indexing="xy")
    angles = 2 * np.pi * ((2 * torch.stack([x, y], -1) - 1) @ gaussian.bfloat16())
    expected = torch.cat([angles.sin(), angles.cos()], -1).permute(2, 0, 1)
    assert (a - b.float()).abs().max() > 0.01
    np.testing.assert_allclose(b[0].float().detach(), expected.float(), atol=0.05)


def test_the_prompt_is_one_token_a_mask(folder, models):
    assert Prompt(models["llava_v1"].prompter(torch.zeros(2, 64)).tokens).tokens.shape == (
        2,
        1,
        256,
    )
