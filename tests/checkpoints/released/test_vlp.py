"""VLP-SAM checkpoints against what the reference implementation printed
(../shared/oracle/C_vlpsam).
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity import close, oracle

from reasonseg import Query, Reference, Segmenter
from reasonseg.errors import InputError
from reasonseg.nn.clip_features import text_features_of_ids
from reasonseg.prompters.vlp import resemblance
from reasonseg.structures.query import Reference as Ref

CASES = {"coco_mask": "mask", "coco_box": "box", "pascal_mask": "mask"}


class Tokens:
    """The reference's token ids instead of CLIP's vocabulary, which no checkpoint holds."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, texts, **_):
        return {
            "input_ids": torch.tensor(
                np.stack([self.ids[text] for text in texts]), dtype=torch.long
            )
        }

    def save_pretrained(self, folder):
        pass


@pytest.fixture(scope="module")
def tokens():
    names, arrays = (
        json.loads(oracle("C_vlpsam", "text.json").read_text(encoding="utf-8")),
        np.load(oracle("C_vlpsam", "text.npz")),
    )
    return Tokens(
        {
            names["template"].format(label=n): ids
            for kind in ("coco", "pascal")
            for n, ids in zip(names[kind], arrays[f"{kind}_tokens"], strict=True)
        }
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The oracle's weights in the layouts of VLP-SAM and segment-anything."""
    stored, place = np.load(oracle("C_vlpsam", "state_dict.npz")), tmp_path_factory.mktemp("vlp")
    after = json.loads(oracle("C_vlpsam", "cases.json").read_text(encoding="utf-8"))[
        "keys_after_first_forward"
    ]
    weights = {k: torch.from_numpy(stored[k]).float() for k in stored}
    ours = {"clipmodel." + k[5:]: v for k, v in weights.items() if k.startswith("clip.")}
    ours |= {k[4:]: v for k, v in weights.items() if k.startswith("vlp.")}
    # surgery renames the attention of the last blocks, and leaves a second name for the last
    for name in after:
        before = name.replace("attn.qkv.", "attn.in_proj_").replace("attn.proj.", "attn.out_proj.")
        if name not in ours and before in ours:
            ours[name] = ours.pop(before)
    last = max(k for k in ours if "visual.transformer" in k and k.endswith("attn.qkv.weight"))
    for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias"):
        ours[f"clipmodel.visual.attn.{part}"] = ours[last.replace("qkv.weight", part)]
    torch.save({"module." + k: v for k, v in ours.items()}, place / "best_model.pt")
    torch.save({k[4:]: v for k, v in weights.items() if k.startswith("sam.")}, place / "sam.pth")
    return place


@pytest.fixture(scope="module")
def model(files, tokens):
    segmenter = Segmenter.from_pretrained(
        files / "best_model.pt", sam=str(files / "sam.pth"), device="cpu"
    )
    segmenter.references.tokenizer = tokens
    return segmenter


def case(name):
    data = np.load(oracle("C_vlpsam", f"{name}.npz"))
    about = next(
        c
        for c in json.loads(oracle("C_vlpsam", "cases.json").read_text(encoding="utf-8"))["cases"]
        if c["name"] == name
    )
    return data, about


def unpacked(values, shape):
    return np.unpackbits(values)[: int(np.prod(shape))].reshape(shape).astype(bool)


def test_sizes_are_read_off_the_tensors(model):
    assert (
        model.references.config.surgery,
        model.references.config.queries,
        model.references.grid,
    ) == (6, 50, 8)
    learned = sum(v.numel() for v in model.references.parameters()) - sum(
        v.numel() for v in model.references.clip.parameters()
    )
    assert learned == 1_395_712


def test_text_tower(model, tokens):
    arrays = np.load(oracle("C_vlpsam", "text.npz"))
    for kind in ("coco", "pascal"):
        with torch.inference_mode():
            found = text_features_of_ids(
                model.references.clip, torch.from_numpy(arrays[f"{kind}_tokens"]).long()
            )
        expected = arrays[f"{kind}_text_features"]
        close(
            f"C text {kind}",
            "label features",
            found,
            expected / np.linalg.norm(expected, axis=1, keepdims=True),
        )


@pytest.mark.parametrize("name", CASES)
def test_every_step(model, name):
    data, about = case(name)
    vlp = model.references
    pictures = [data[f"{which}_rgb_{i}"] for which in ("query", "support") for i in range(2)]
    with torch.inference_mode():
        pixels = vlp.pixels.batch(pictures, torch.device("cpu"), torch.float32)
        close(f"C {name}", "CLIP input", pixels[:2], data["vlm_query_img"], atol=0.02)
        close(
            f"C {name}", "CLIP input, reference", pixels[2:], data["support_imgs"][:, 0], atol=0.02
        )
        text = vlp.read(about["class_name"])
        close(
            f"C {name}",
            "label",
            text,
            data["text_feature"] / np.linalg.norm(data["text_feature"], axis=1, keepdims=True),
        )
        seen = vlp.patch_encoder.encode(pictures)
        if "query_clip_feat" in data:
            close(
                f"C {name}",
                "patch features",
                seen[:2].transpose(1, 2).reshape(2, 512, 8, 8),
                data["query_clip_feat"],
            )
            close(
                f"C {name}",
                "patch features, reference",
                seen[2:].transpose(1, 2).reshape(2, 512, 8, 8),
                data["supp_clip_feat"],
            )
        masks = torch.from_numpy(data["support_mask_used"]).float()[:, None]
        masks = torch.nn.functional.interpolate(masks, (24, 24), mode="nearest")
        close(
            f"C {name}",
            "pseudo mask",
            resemblance(seen[:2], seen[2:, None], masks).reshape(2, 1, 8, 8),
            data["pseudo_mask"],
        )
        prompt = vlp(seen[:2], seen[2:, None], masks, text)
        close(f"C {name}", "prompt tokens", prompt.tokens, data["protos"])
        before = replace(model.decoder.pixels, enlarged=0)
        close(
            f"C {name}",
            "SAM input before enlarging",
            torch.stack([before(p) for p in pictures[:2]])[:, :, ::8, ::8],
            data["query_img_every8"],
            atol=0.02,
        )
        features = model.decoder.encode(pictures[:2])
        logits, iou = model.decoder.decode(features, torch.arange(2), prompt)
        if "low_res_logits" in data:
            close(f"C {name}", "logits", logits[:, None], data["low_res_logits"], atol=2e-3)
            close(
                f"C {name}",
                "SAM embedding",
                features.embedding[:, :, ::8, ::8],
                data["sam_feat_every8"],
            )
        else:
            close(
                f"C {name}",
                "logits",
                logits[:, None, ::2, ::2],
                data["low_res_logits_every2"],
                atol=2e-3,
            )
        close(f"C {name}", "predicted IoU", iou[:, None], data["iou"], atol=1e-3)
        full = model.decoder.restore(logits, (512, 512)) > 0
        assert int((full.numpy() ^ unpacked(data["pred_mask"], (2, 512, 512))).sum()) <= 3


def test_the_whole_way(model):
    """From pictures, a mask and a label to masks in the pictures' own frames."""
    data, about = case("coco_mask")
    logits = torch.nn.functional.interpolate(
        torch.from_numpy(data["low_res_logits"]), (512, 512), mode="bilinear", align_corners=True
    )
    for i in range(2):
        support, query = data[f"support_rgb_{i}"], data[f"query_rgb_{i}"]
        used = torch.from_numpy(data["support_mask_used"][i].astype(np.float32))[None, None]
        mask = (
            torch.nn.functional.interpolate(used, support.shape[:2], mode="nearest")[0, 0].numpy()
            > 0
        )
        answer = model(
            Query(query, references=[Reference(support, mask=mask, label=about["class_name"][i])])
        )
        expected = (
            torch.nn.functional.interpolate(logits[i : i + 1], query.shape[:2], mode="bilinear")[0]
            > 0
        )
        assert answer.status == "found" and answer.labels == [about["class_name"][i]]
        assert (answer.masks != expected.numpy()).mean() < 0.01


def test_what_is_missing_is_said(files, tmp_path):
    with pytest.raises(InputError, match="holds no SAM"):
        Segmenter.from_pretrained(files / "best_model.pt", device="cpu")
    weights = torch.load(files / "best_model.pt", weights_only=True)
    weights.pop("module.merge_1.0.weight")
    torch.save(weights, tmp_path / "best_model.pt")
    with pytest.raises(InputError, match="missing: merge.weight"):
        Segmenter.from_pretrained(tmp_path, sam=str(files / "sam.pth"), device="cpu")


def test_a_label_without_a_vocabulary_is_refused(files, picture):
    segmenter = Segmenter.from_pretrained(files, sam=str(files / "sam.pth"), device="cpu")
    mask = np.zeros(picture.shape[:2], bool)
    mask[5:20, 5:20] = True
    assert segmenter(Query(picture, references=[Ref(picture, mask=mask)])).status == "found"
    with pytest.raises(InputError, match="reads no labels"):
        segmenter(Query(picture, references=[Ref(picture, mask=mask, label="cat")]))
    with pytest.raises(InputError, match="reads no words"):
        segmenter(Query(picture, "the cat"))


def test_saved_and_read_again(model, files, picture, tmp_path):
    segmenter = Segmenter.from_pretrained(files, sam=str(files / "sam.pth"), device="cpu")
    segmenter.save_pretrained(tmp_path / "m")
    again = Segmenter.from_pretrained(tmp_path / "m", device="cpu")
    mask = np.zeros(picture.shape[:2], bool)
    mask[5:20, 5:20] = True
    query = Query(picture, references=[Ref(picture, mask=mask)])
    assert np.array_equal(segmenter(query).masks, again(query).masks)
    assert again.decoder.pixels.enlarged == segmenter.decoder.pixels.enlarged == 1024
