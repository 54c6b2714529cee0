"""Folders of changes: small, loaded like any model, tied to the model they change, made whole by
`merge`.
"""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_data import pairs

from reasonseg import InputError, Query, Segmenter
from reasonseg.checkpoints.delta import Changes
from reasonseg.cli.main import main
from reasonseg.config.schema import override, parse
from reasonseg.nn.lora import adapters, add_lora, add_rows, fold_adapters
from reasonseg.training.finetune import finetune
from reasonseg.training.prepare import FinetuneSettings

FEW = [
    "train.max_steps=4",
    "train.batch=4",
    "train.save_every=2",
    "train.lr=1e-3",
    "data.share=0.25",
]


def settings(*overrides):
    return parse(FinetuneSettings, override({}, [*FEW, *overrides]))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(pairs(tmp_path_factory.mktemp("own") / "shapes", 8))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder of its own, whose markers are new."""
    model = Segmenter.from_pretrained(device="cpu")
    model.settings.about["new_tokens"] = True
    folder = tmp_path_factory.mktemp("base") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(root, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    model = Segmenter.from_pretrained(base, device="cpu")
    finetune(model, root, out, settings("train.save=changes"))
    return model, out / "model"


def test_they_are_small_and_load_as_they_were(tuned, base, scenes):
    model, folder = tuned
    kept = load_file(folder / "changes.safetensors")
    assert {name.split(":")[0] for name in kept} == {"whole", "rows", "lora_A", "lora_B"}
    assert kept["rows:backbone.model.model.language_model.embed_tokens.weight"].shape == (
        2,
        model.backbone.width,
    )
    assert {f.name for f in folder.iterdir()} == {"changes.yaml", "changes.safetensors"}
    size = sum(f.stat().st_size for f in base.rglob("*.safetensors"))
    assert (folder / "changes.safetensors").stat().st_size < 0.2 * size
    again, first = (
        Segmenter.from_pretrained(folder, device="cpu"),
        Segmenter.from_pretrained(base, device="cpu"),
    )
    assert not adapters(again) and again.settings.about["name"].endswith("-shapes")
    changed = set()
    for (name, a), (_, b), (_, c) in zip(
        *(m.named_parameters() for m in (model, again, first)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)
        if not torch.equal(b, c):
            changed.add((name.split(".")[0], name.split(".")[-2]))
    spoken = {last for part, last in changed if part == "backbone"}
    assert spoken == {"q_proj", "v_proj", "embed_tokens"} and {part for part, _ in changed} == {
        "backbone",
        "prompter",
        "decoder",
    }
    embeddings = [m.backbone.model.get_input_embeddings().weight for m in (again, first)]
    rows = (embeddings[0] != embeddings[1]).any(1).nonzero()[:, 0].tolist()
    assert rows == sorted(model.backbone.markers.ids), "only the rows of the markers change"


def test_merge_makes_a_whole_model_of_them(tuned, tmp_path, capsys):
    _, folder = tuned
    assert main(["merge", str(folder), str(tmp_path / "whole")]) == 0
    a, b = (Segmenter.from_pretrained(f, device="cpu") for f in (folder, tmp_path / "whole"))
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(x, y), name
    assert main(["merge", str(tmp_path / "whole"), str(tmp_path / "again")]) == 2
    assert "holds no changes.yaml" in capsys.readouterr().err


def test_a_model_tuned_twice_changes_what_it_was_between(root, base, tmp_path):
    """The second result stands on the first, not on what both began with."""
    model = Segmenter.from_pretrained(base, device="cpu")
    for name in ("a", "b"):
        finetune(model, root, tmp_path / name, settings("train.save=changes", "train.max_steps=2"))
    again = Segmenter.from_pretrained(tmp_path / "b" / "model", device="cpu")
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_parts_of_a_batch_and_layers_computed_again_are_the_same(root, base, tmp_path):
    """Saving memory changes the weights by rounding only."""
    ends = []
    for name, more in (("a", []), ("b", ["train.checkpointing=true", "train.accumulate=2"])):
        model = Segmenter.from_pretrained(base, device="cpu")
        finetune(model, root, tmp_path / name, settings("train.max_steps=2", *more))
        ends.append(dict(model.named_parameters()))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-3, msg=name)


def test_changes_of_changes(tuned, root, tmp_path):
    _, folder = tuned
    model = Segmenter.from_pretrained(folder, device="cpu")
    finetune(model, root, tmp_path / "out", settings("train.save=changes", "train.max_steps=2"))
    again = Segmenter.from_pretrained(tmp_path / "out" / "model", device="cpu")
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def told(folder, **values):
    file = folder / "changes.yaml"
    file.write_text(
        yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | values), encoding="utf-8"
    )


def tensors(folder, change):
    file = folder / "changes.safetensors"
    save_file(change(load_file(file)), file)


def moved(file):
    """One layer in the middle of a file is another."""
    weights = load_file(file)
    weights[
        next(name for name in weights if name.endswith("layers.1.self_attn.q_proj.weight"))
    ] += 1
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f, b: (f / "changes.safetensors").write_bytes(b"no"), "cut short"),
        (
            lambda f, b: (f / "changes.yaml").write_text("base: 3", encoding="utf-8"),
            "cannot be read",
        ),
        (lambda f, b: shutil.rmtree(b), "correct base in changes.yaml"),
        (lambda f, b: moved(b / "backbone" / "model.safetensors"), "whose weights are others now"),
        (lambda f, b: told(f, base={}), "not source with any of"),
        (
            lambda f, b: told(f, base={"source": str(b), "dtype": "float16"}),
            "not source with any of",
        ),
        (lambda f, b: told(f, base={"source": 3}), "something is no text"),
        (lambda f, b: told(f, about=None), "about None"),
        (lambda f, b: told(f, alpha="x"), "alpha is 'x'"),
        (lambda f, b: told(f, rows=[1, 10**6]), "reshaped: rows:"),
        (lambda f, b: told(f, rows="all"), "not a list of numbers"),
        (lambda f, b: tensors(f, lambda t: t | {"nothing": torch.zeros(1)}), "left over: nothing"),
        (
            lambda f, b: tensors(f, lambda t: {k: v for k, v in t.items() if "lora_B" not in k}),
            "other half of its LoRA pair",
        ),
        (
            lambda f, b: tensors(
                f, lambda t: {k: v[:, :3].clone() if "lora_A" in k else v for k, v in t.items()}
            ),
            "reshaped: lora_A",
        ),
        (
            lambda f, b: tensors(
                f, lambda t: {k: v[..., :3].clone() if "rows:" in k else v for k, v in t.items()}
            ),
            "reshaped: rows:",
        ),
    ],
)
def test_what_does_not_fit_is_said(tuned, base, tmp_path, spoil, words):
    folder, below = shutil.copytree(tuned[1], tmp_path / "f"), shutil.copytree(base, tmp_path / "b")
    told(folder, base={"source": str(below)})
    Segmenter.from_pretrained(folder, device="cpu")
    spoil(folder, below)
    with pytest.raises(InputError, match=words):
        Segmenter.from_pretrained(folder, device="cpu")
    with pytest.raises(InputError):
        Segmenter.from_pretrained(folder, device="cpu", template="plain")


def test_qlora(root, base, tmp_path, scenes):
    """Adapters beside 4-bit weights: trained, killed or not, kept as changes, and the same model
    when loaded so again.
    """
    pytest.importorskip("bitsandbytes")
    model = Segmenter.from_pretrained(base, device="cpu", quantization="nf4")
    states = torch.randn(3, model.backbone.width)
    before = model.backbone.layers[0].self_attn.q_proj(states)
    summary = finetune(model, root, tmp_path / "out", settings())
    # as it was asked for; a quantized model has changes only
    assert summary["settings"]["train"]["save"] == "model"
    layer = model.backbone.layers[0].self_attn.q_proj
    # training has another kernel
    torch.testing.assert_close(layer.get_base_layer()(states), before, atol=0.05, rtol=0.02)
    assert layer.lora_B["default"].weight.abs().max() > 0
    folder = tmp_path / "out" / "model"
    again = Segmenter.from_pretrained(folder, device="cpu", quantization="nf4")
    assert again.backbone.layers[0].self_attn.q_proj.lora_A["default"].weight.shape[0] == 8
    kept, loaded = (dict(m.named_parameters()) for m in (model, again))
    adapted = [
        name for name in kept if "lora_" in name or name.startswith(("prompter.", "decoder."))
    ]
    assert (
        adapted
        and kept.keys() == loaded.keys()
        and all(torch.equal(kept[name], loaded[name]) for name in adapted)
    )
    queries = [Query(scenes[i].query.image, scenes[i].query.text) for i in range(4)]
    again.batch(queries)
    # as saving did to the trained one: bitsandbytes packs 4-bit weights once more, and rounds them
    again.state_dict()
    for a, b in zip(model.batch(queries), again.batch(queries), strict=True):
        assert a.text == b.text and (a.masks == b.masks).mean() > 0.999
    whole = Segmenter.from_pretrained(folder, device="cpu")  # in full precision: folded
    assert not adapters(whole)
    with pytest.raises(InputError, match="adapters already"):
        add_lora(again.backbone.layers, 4, 8.0)
    with pytest.raises(InputError, match="cannot be trained whole"):
        finetune(again, root, tmp_path / "x", settings("train.lora=0"))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens(tied, tmp_path):
    """Rows of an untied head are trained too; folded, they are the rows, and nothing else has
    moved.
    """
    model = Segmenter.from_pretrained(device="cpu").backbone.model
    if not tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ends = [
        m.weight.detach().clone()
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    rows = add_rows(model, [7, 9])
    assert len(rows) == (1 if tied else 2) and all(r.shape == (2, ends[0].shape[1]) for r in rows)
    assert (
        [p.requires_grad for p in model.vision_tower.parameters()][:1] == [True]
        if hasattr(model, "vision_tower")
        else True
    )
    with torch.no_grad():
        for k, r in enumerate(rows):
            r += k + 1.0
    ids = torch.tensor([[7, 8]])
    assert torch.allclose(model.get_input_embeddings()(ids)[0, 0], ends[0][7] + 1)
    states = torch.randn(1, ends[0].shape[1])
    said = model.get_output_embeddings()(states)
    fold_adapters(model)
    torch.testing.assert_close(model.get_output_embeddings()(states), said)
    for k, m in enumerate((model.get_input_embeddings(), model.get_output_embeddings())):
        wanted = ends[k].clone()
        wanted[[7, 9]] += 1.0 if tied or k == 0 else 2.0
        assert torch.equal(m.weight, wanted)


def test_adapters_of_a_bfloat16_model_are_float32():
    layers = Segmenter.from_pretrained(device="cpu", dtype="bfloat16").backbone.layers
    assert {p.dtype for p in add_lora(layers, 4, 8.0)} == {torch.float32}
    states = torch.randn(1, 2, layers[0].self_attn.q_proj.in_features, dtype=torch.bfloat16)
    assert layers[0].self_attn.q_proj(states).dtype == torch.bfloat16


def test_a_model_from_nowhere_has_nothing_to_change(root, tmp_path):
    model = Segmenter.from_pretrained(device="cpu")
    model.origin = None
    with pytest.raises(InputError, match="save it first"):
        finetune(model, root, tmp_path / "out", settings("train.save=changes"))


def test_names_that_do_not_fit_are_listed(segmenter, tmp_path):
    with pytest.raises(InputError, match="left over: whole:nothing"):
        Changes({"whole:nothing": torch.zeros(1)}).apply(segmenter, tmp_path)
