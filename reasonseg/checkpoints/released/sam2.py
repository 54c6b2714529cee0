"""Original SAM 2 weights (inside Sa2VA) as transformers' Sam2Model.

Widths, depths and stages are read off the tensors. What tensors do not tell is in `SIZES`: heads,
windows, and the blocks that attend to the whole picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Sam2Config

from reasonseg.errors import InputError

DECODER_HEADS = 8
SIDE = 1024
STRIDES = (4, 8, 16)  # of the three maps that the mask decoder reads
MEMORY = (  # for video alone; not read
    "maskmem_tpos_enc", "memory_attention.", "memory_encoder.", "no_mem_pos_enc", "no_obj_ptr",
    "obj_ptr_proj.", "mask_downsample.", "obj_ptr_tpos_proj.", "no_obj_embed_spatial",
)  # fmt: skip
TRUNK = "image_encoder.trunk."
RENAMED = (  # pattern of an original name -> ours; all that fit are applied, in this order
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm([1-4])\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
)
GAUSSIAN = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
TIED = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
POINTS = r"^sam_prompt_encoder\.point_embeddings\.(\d)\.weight$"
HEAD = (
    r"^sam_(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|"
    r"pred_obj_score_head))\.layers\.(\d+)\."
)


@dataclass(frozen=True)
class Size:
    """What the tensors of a Hiera trunk do not tell.

    `heads` of the first stage (doubled in each further one), `windows` of the stages, and the
    numbers of the blocks without windows.
    """

    heads: int
    windows: tuple[int, ...]
    everywhere: tuple[int, ...]


# (width of the first stage, blocks of each stage) -> the rest; SAM 2's four published sizes
SIZES: dict[tuple[int, tuple[int, ...]], Size] = {
    (96, (1, 2, 7, 2)): Size(1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): Size(1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): Size(2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): Size(2, (8, 4, 16, 8), (23, 33, 43)),
}


def size_in(content: Any, place: str) -> Size | None:
    """A size as a config may state it: `num_heads`, `window_spec`, `global_att_blocks`, the names
    of SAM 2's own configs. None without one. Raises `InputError` where a field is missing.
    """
    if content is None:
        return None
    names = ("num_heads", "window_spec", "global_att_blocks")
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise InputError(f"{place}: write {', '.join(names)}, as in SAM 2's own configs")
    heads, windows, everywhere = (content[name] for name in names)
    return Size(int(heads), tuple(windows), tuple(everywhere))


def renamed(name: str, head_layers: Callable[[str], int]) -> list[str]:
    """transformers' names of an original tensor; none for what only video needs.

    `head_layers(place)` tells how many layers a head has.
    """
    if name.startswith(MEMORY):
        return []
    if name == GAUSSIAN:
        return list(TIED)
    if found := re.match(HEAD, name):
        number, last = int(found[2]), head_layers(found[1]) - 1
        middle = (
            "proj_in" if number == 0 else "proj_out" if number == last else f"layers.{number - 1}"
        )
        return [f"{found[1]}.{middle}.{name[found.end() :]}"]
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return [name]


def items(names: Sequence[str], tensor: Callable[[str], torch.Tensor]):
    """(our name, value, original name) of every tensor; the point embeddings become one."""
    counts: dict[str, int] = {}
    for name in names:
        if found := re.match(HEAD, name):
            counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    points = sorted(name for name in names if re.match(POINTS, name))
    for name in names:
        if name in points:
            continue
        for ours in renamed(name, counts.__getitem__):
            yield ours, tensor(name), name
    if points:
        yield "prompt_encoder.point_embed.weight", torch.cat([tensor(p) for p in points]), points[0]


def config_of(
    names: Sequence[str], shape: Callable[[str], tuple[int, ...]], size: Size | None = None
) -> Sam2Config:
    """The configuration that fits original tensors; `size` where it is none of the published.

    Raises `InputError` where a tensor that says a size is missing, or the size is not known.
    """

    def of(name: str) -> tuple[int, ...]:
        if name not in names:
            raise InputError(f"there is no SAM 2 in it: it lacks {name}")
        return shape(name)

    trunk = trunk_of(names, of, size)
    hidden = of("image_encoder.neck.convs.0.conv.weight")[0]
    inner = "sam_mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"
    vision = {
        "backbone_config": trunk,
        "backbone_channel_list": trunk["embed_dim_per_stage"][::-1],
        "backbone_feature_sizes": [[SIDE // s, SIDE // s] for s in STRIDES],
        "fpn_hidden_size": hidden,
    }
    prompt = {
        "hidden_size": hidden,
        "image_size": SIDE,
        "patch_size": STRIDES[-1],
        "mask_input_channels": of("sam_prompt_encoder.mask_downscaling.0.weight")[0] * 4,
    }
    masks = {
        "hidden_size": hidden,
        "mlp_dim": of("sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight")[0],
        "num_hidden_layers": len(
            {n.split(".")[3] for n in names if n.startswith("sam_mask_decoder.transformer.layers.")}
        ),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": hidden // of(inner)[0],
        "num_multimask_outputs": of("sam_mask_decoder.mask_tokens.weight")[0] - 1,
        "iou_head_hidden_dim": of("sam_mask_decoder.iou_prediction_head.layers.0.weight")[0],
    }
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=masks)


def trunk_of(
    names: Sequence[str], of: Callable[[str], tuple[int, ...]], size: Size | None
) -> dict[str, Any]:
    """The configuration of the Hiera trunk; `of(name)` gives a tensor's shape. Raises `InputError`
    where the size is none of the published ones and is not given.
    """
    width = of(f"{TRUNK}patch_embed.proj.weight")[0]
    depth = 1 + max(
        (int(m[1]) for n in names if (m := re.match(rf"{re.escape(TRUNK)}blocks\.(\d+)\.", n))),
        default=-1,
    )
    outs = [of(f"{TRUNK}blocks.{i}.mlp.layers.1.weight")[0] for i in range(depth)]
    widths = list(dict.fromkeys(outs))
    blocks = tuple(outs.count(w) for w in widths)
    size = size or SIZES.get((width, blocks))
    if size is None:
        raise InputError(
            f"a SAM 2 of width {width} with {list(blocks)} blocks is none of the published sizes; "
            "write sam2_size: {num_heads, window_spec, global_att_blocks} into its config.json"
        )
    return {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "num_attention_heads": size.heads,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": list(blocks),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [size.heads * 2**i for i in range(len(blocks))],
        "window_size_per_stage": list(size.windows),
        "global_attention_blocks": list(size.everywhere),
        "window_positional_embedding_background_size": list(of(f"{TRUNK}pos_embed")[-2:]),
    }
