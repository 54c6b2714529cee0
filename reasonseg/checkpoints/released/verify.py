"""`reasonseg import --verify`: the proof that a mask decoder came over whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reasonseg.checkpoints.parts import Parts
from reasonseg.checkpoints.released.base import find_format
from reasonseg.checkpoints.released.files import Shards
from reasonseg.checkpoints.released.sam import DECODER_HEADS
from reasonseg.decoders.sam import SamDecoder
from reasonseg.errors import InputError
from reasonseg.nn.pretrained import model_path
from reasonseg.nn.prompt import Prompt


def differences(parts: Parts, source: str | Path, sam: str | None) -> dict[str, float]:
    """The largest difference between the original package and the import on a probe image:
    embedding, logits, score.

    `source` is where the parts were read from, `sam` the mask decoder beside it, if one was given.
    Both run in float32. Raises `InputError` where segment-anything is not installed or the decoder
    has no original.
    """
    if sam and not Path(sam).is_file():
        raise InputError(
            "--verify compares with original segment-anything weights; this decoder comes from a "
            "transformers folder"
        )
    if sam:
        weights = Shards(sam)
        names = {key: key for key in weights.of}
    elif (model_path(source) / "settings.yaml").is_file():
        raise InputError(
            f"--verify compares with segment-anything; {source} is a model folder of ours already"
        )
    else:
        format_, found = find_format(model_path(source))
        if format_.original_sam is None:
            raise InputError(
                f"--verify compares SAM decoders with segment-anything; {source} holds none of "
                "its weights"
            )
        weights, names = format_.original_sam(found)
    if not isinstance(parts.decoder, SamDecoder):
        raise InputError(
            "--verify compares SAM decoders with segment-anything; this model draws with another "
            "one"
        )
    decoder = parts.decoder.float().eval()
    original = build_original(decoder.model.config)
    original.load_state_dict(
        {name: weights.tensor(key).float() for name, key in names.items()}, strict=True
    )
    image = probe()
    tokens = torch.randn(2, 1, decoder.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = decoder.encode([image])
        logits, scores = decoder.decode(features, torch.zeros(2, dtype=torch.long), Prompt(tokens))
        embedding = original.image_encoder(decoder.pixels(image)[None])
        dense = original.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
            2, -1, *embedding.shape[-2:]
        )
        theirs, quality = original.mask_decoder(
            image_embeddings=embedding,
            image_pe=original.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    pairs = {
        "embedding": (features.embedding, embedding),
        "logits": (logits, theirs[:, 0]),
        "score": (scores, quality[:, 0]),
    }
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def build_original(config: Any) -> Any:
    """segment-anything's own SAM with the sizes of a transformers `SamConfig`, on the CPU, its
    weights unset.
    """
    try:
        from segment_anything import modeling
    except ImportError:
        raise InputError("--verify needs the original package; install reasonseg[sam]") from None
    vision, masks = config.vision_config, config.mask_decoder_config
    grid = vision.image_size // vision.patch_size
    norm: Any = partial(torch.nn.LayerNorm, eps=1e-6)
    encoder = modeling.ImageEncoderViT(
        norm_layer=norm,
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        mlp_ratio=vision.mlp_dim / vision.hidden_size,
        out_chans=vision.output_channels,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=vision.window_size,
        global_attn_indexes=tuple(vision.global_attn_indexes),
    )
    prompts = modeling.PromptEncoder(
        embed_dim=masks.hidden_size,
        image_embedding_size=(grid, grid),
        input_image_size=(vision.image_size,) * 2,
        mask_in_chans=config.prompt_encoder_config.mask_input_channels,
    )
    transformer = modeling.TwoWayTransformer(
        masks.num_hidden_layers, masks.hidden_size, DECODER_HEADS, masks.mlp_dim
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=masks.hidden_size,
        transformer=transformer,
        num_multimask_outputs=masks.num_multimask_outputs,
        iou_head_depth=masks.iou_head_depth,
        iou_head_hidden_dim=masks.iou_head_hidden_dim,
    )
    return modeling.Sam(encoder, prompts, decoder).eval()


def probe() -> np.ndarray:
    """A picture with edges, gradients and noise, uint8 `[180, 240, 3]`, always the same."""
    y, x = np.mgrid[:180, :240]
    rng = np.random.default_rng(0)
    picture = np.stack([x, y * 240 / 180, 240 - x], -1) + rng.normal(0, 8, (180, 240, 3))
    picture[(x - 90) ** 2 + (y - 80) ** 2 < 1600] = (220, 40, 40)
    picture[100:150, 150:220] = (30, 160, 60)
    return picture.clip(0, 255).astype(np.uint8)
