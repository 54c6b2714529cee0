"""Puts what was trained into the package: `reasonseg/assets/photo`, as changes over pip packages.

    python -m recipes.photo.ship out/photo_decoder/model --words out/photo_words/words \\
        --examples out/photo_examples/examples
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from reasonseg.checkpoints.delta import Changes
from reasonseg.checkpoints.folder import load
from reasonseg.nn.pretrained import PACKAGED
from reasonseg.training.run import ADAPTERS, FINISHED

FROM_PACKAGES = (
    "backbone.model.model.vision_tower.",
    "backbone.model.model.language_model.",
    "backbone.model.lm_head.",
    "decoder.model.vision_encoder.backbone.",
)
ROWS = "backbone.model.model.language_model.embed_tokens.weight"
LORA = "backbone.model.model.language_model.layers."


def newest(folder: Path, name: str) -> Path:
    """A file of a finished stage, or the newest checkpoint's weights of one that still runs."""
    if (folder / name).is_file():
        return folder / name
    found = sorted(folder.glob("checkpoint-*"), key=lambda c: int(c.name.split("-")[1]))
    found = [c for c in found if (c / "complete").is_file()]
    return found[-1] / "model.safetensors"


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What a stage trained of the segmenter, by the names of its parameters."""
    kept = load_file(newest(folder, name))
    lead = "segmenter."
    return {k.removeprefix(lead): v for k, v in kept.items() if k.startswith(lead)}


def changes(start: str, words: Path | None, examples: Path | None, alpha: float) -> Changes:
    """All that differs from the model over packages alone."""
    parts = load(start, device="cpu", dtype="float32")
    own = dict(parts.named_parameters())
    buffers = dict(parts.named_buffers())
    found = {n: p.detach() for n, p in own.items() if not n.startswith(FROM_PACKAGES)}
    tensors: dict[str, torch.Tensor] = {}
    if words is not None:
        for name, value in trained(words, ADAPTERS).items():
            if ".lora_" in name:
                layer, half = name.split(".lora_")
                tensors[f"lora_{half[0]}:{layer}"] = value
            elif "trainable_tokens_delta" in name:
                tensors[f"rows:{ROWS}"] = value
            elif name in found:
                found[name] = value
    if examples is not None:
        found |= {
            n: v for n, v in trained(examples, FINISHED).items() if n.startswith("references.")
        }
    tensors |= {f"whole:{n}": v for n, v in found.items()}
    tensors |= {f"whole:{n}": b for n, b in buffers.items() if n.endswith("positional_embedding")}
    count = own[ROWS].shape[0]
    rows = list(range(count - 3, count)) if f"rows:{ROWS}" in tensors else []
    stored = {k: v.to(torch.float16) for k, v in tensors.items()}
    return Changes(stored, rows, alpha, {"name": "reasonseg-photo"})


def main() -> None:
    """Writes the folder and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", help="the model with the trained decoder")
    parser.add_argument("--words", type=Path, help="folder of the stage that taught words")
    parser.add_argument("--examples", type=Path, help="folder of the stage of references")
    parser.add_argument("--alpha", type=float, default=24.0, help="alpha of its LoRA")
    parser.add_argument("--out", type=Path, default=PACKAGED["photo"])
    options = parser.parse_args()
    base = load("photo-parts", device="cpu")
    made = changes(options.start, options.words, options.examples, options.alpha)
    made.save(options.out, base.origin)
    size = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file())
    print(f"{size / 1e6:.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
