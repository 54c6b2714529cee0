"""LLaVA v1 in its own layout (also the language side of LISA) as our `llava` backbone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from reasonseg.backbones.llava import SPLICED, Config, Llava
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.layout import Layout
from reasonseg.config.schema import parse
from reasonseg.errors import InputError
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.llama_tokenizer import ADDED, LlamaPieces
from reasonseg.nn.meta_init import WeightFiller

LISA_TOKENS = ("[SEG]", "<im_start>", "<im_end>")  # in the order in which LISA's training adds them
LLAMA = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "hidden_act",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
# CLIP's, of 0..1
MEAN, STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
# image tokens: LISA's own code reads the state of [SEG] at a distance that holds for no other
# number
TRAINED_ON = 256


def tokenizer_of(layout: Layout) -> LlamaPieces:
    """The tokenizer beside the weights, checked against their embedding. Raises `InputError`
    where they do not fit.
    """
    tokenizer = LlamaPieces.from_pretrained(layout.folder)
    rows, said = layout.shape("model.embed_tokens.weight")[0], layout.config.get("vocab_size")
    # a training checkpoint lies beside the tokenizer it started from
    if layout.is_lisa and layout.adapters:
        lacking = [t for t in LISA_TOKENS if t not in tokenizer.added]
        if len(tokenizer) + len(lacking) == rows:
            tokenizer.add_tokens(lacking)
        said = rows
    if said != rows:
        raise InputError(
            f"{layout.folder / 'config.json'}: vocab_size is {said}, but "
            f"model.embed_tokens.weight has {rows} rows"
        )
    if layout.shape("lm_head.weight")[0] != rows:
        raise InputError(
            f"{layout.folder}: lm_head.weight has {layout.shape('lm_head.weight')[0]} rows, not "
            f"{rows}"
        )
    if len(tokenizer) > rows:
        raise InputError(
            f"{layout.folder}: the tokenizer has {len(tokenizer)} tokens, but "
            f"model.embed_tokens.weight has {rows} rows"
        )
    if layout.is_lisa and "[SEG]" not in tokenizer.added and "<SEG>" not in tokenizer.added:
        ids = tokenizer.encode("[SEG]", add_special_tokens=False)
        raise InputError(
            f"{layout.folder / ADDED}: expected [SEG] to be one added token; this tokenizer cuts "
            f"it into {len(ids)} ids {ids}"
        )
    return tokenizer


def network_of(layout: Layout, vision: dict) -> LlavaConfig:
    """transformers' configuration: sizes from config.json, the projector's kind from its
    tensors.
    """
    text = {k: layout.config[k] for k in LLAMA if layout.config.get(k) is not None}
    text["vocab_size"] = layout.shape("model.embed_tokens.weight")[0]
    linear = "model.mm_projector.weight" in layout.keys
    feature = layout.config.get("mm_vision_select_feature", "patch")
    fields: dict[str, Any] = {"image_token_id": SPLICED}
    return LlavaConfig(
        **fields,
        vision_config=vision,
        text_config=LlamaConfig(**text).to_dict(),
        projector_hidden_act="linear" if linear else "gelu",
        vision_feature_layer=layout.config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if feature == "cls_patch" else "default",
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=bool(layout.config.get("tie_word_embeddings", False)),
    )


def tower_folder(layout: Layout, clip: str | None) -> Path:
    """Where the vision tower lies: `clip`, or what config.json names, as a path, beside the
    weights, or on the hub.
    """
    named = layout.config.get("vision_tower") or layout.config.get("mm_vision_tower")
    said = clip or str(named)
    places = [Path(said)] if clip else []
    for base in () if clip else (layout.folder, layout.folder.parent, Path()):
        places += [base / said, base / Path(said).name]
    for place in places:
        if (place / "config.json").is_file():
            return place
    if not clip and re.fullmatch(r"[\w.-]+/[\w.-]+", said):
        from reasonseg.nn.pretrained import download

        return download(
            said, None, "the vision tower is not in LISA's files; give its folder as clip (--clip)"
        )
    raise InputError(
        f"no vision tower at {said}: give the folder of the CLIP model that config.json names as "
        "clip (--clip)"
    )


def tower_config(layout: Layout, folder: Path) -> dict:
    """The configuration of a CLIP folder, checked against what the weights were trained with."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    vision = config.get("vision_config", config)
    vision = CLIPVisionConfig(
        **{k: v for k, v in vision.items() if k in CLIPVisionConfig().to_dict()}
    ).to_dict()
    projector = (
        "model.mm_projector.weight"
        if "model.mm_projector.weight" in layout.keys
        else "model.mm_projector.0.weight"
    )
    width = layout.shape(projector)[1]
    if vision["hidden_size"] != width:
        raise InputError(
            f"{file}: hidden_size is {vision['hidden_size']}, but the projector takes {width}"
        )
    named = str(layout.config.get("vision_tower") or layout.config.get("mm_vision_tower"))
    patch = re.search(r"patch(\d+)", named)
    if patch and int(patch[1]) != vision["patch_size"]:
        raise InputError(
            f"{file}: patch_size is {vision['patch_size']}, but the weights were trained with "
            f"{named}"
        )
    side = re.search(r"patch\d+-(\d+)$", named)
    if side and int(side[1]) != vision["image_size"]:
        raise InputError(
            f"{file}: image_size is {vision['image_size']}, but the weights were trained with "
            f"{named}"
        )
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    if layout.is_lisa and not side and patches != TRAINED_ON:
        raise InputError(
            f"{file}: makes {patches} image tokens, but LISA is trained with {TRAINED_ON}"
        )
    return vision


def backbone_of(
    layout: Layout, tokenizer, vision: dict, tower: Path, template: str | None
) -> Llava:
    """The hollow backbone; call it inside `meta_init()`."""
    pixels = ImageProcessor.load(
        tower, size=vision["image_size"], resample="bicubic", aspect="crop", mean=MEAN, std=STD
    )
    if pixels.size != vision["image_size"]:
        raise InputError(
            f"{tower}: pictures are {pixels.size} pixels wide in preprocessor_config.json, "
            f"{vision['image_size']} in config.json"
        )
    model = LlavaForConditionalGeneration(network_of(layout, vision))
    config = parse(Config, {"template": template or Config().template}, "backbone")
    return Llava(model, tokenizer, pixels, config)


def target(name: str) -> str:
    """Our name, inside the backbone, of a tensor of the language side."""
    if name.startswith("model.mm_projector."):
        rest = name.removeprefix("model.mm_projector.")
        number, _, last = rest.rpartition(".")
        return f"model.model.multi_modal_projector.linear_{1 + int(number or 0) // 2}.{last}"
    if name.startswith("model."):
        return f"model.model.language_model.{name.removeprefix('model.')}"
    return f"model.{name}"


def fill_tower(filling: WeightFiller, folder: Path, lead: str = "") -> None:
    """Fills the vision tower from a CLIP folder: a whole CLIPModel, or its vision half."""
    shards = Shards(folder)
    half = "vision_model." if any(k.startswith("vision_model.") for k in shards.of) else ""
    place = f"{lead}model.model.vision_tower."
    inner = (
        "vision_model." if f"{place}vision_model.pre_layrnorm.weight" in filling.parameters else ""
    )
    for key, value in shards.items():
        if key.startswith(half) and not key.endswith("position_ids"):
            filling.put([place + inner + key.removeprefix(half)], value, f"{folder.name}/{key}")


def fill_identity(filling: WeightFiller, layout: Layout, lead: str = "") -> None:
    """A single linear projector is transformers' with a second layer that changes nothing."""
    if "model.mm_projector.weight" in layout.keys:
        width = layout.shape("model.mm_projector.weight")[0]
        place = f"{lead}model.model.multi_modal_projector.linear_2."
        filling.put([place + "weight"], torch.eye(width))
        filling.put([place + "bias"], torch.zeros(width))
