"""Puts what was trained into a folder of changes over pip packages; by default the packaged one.

    python -m recipes.photo.ship --decoder out/photo_decoder/decoder \\
        --words out/photo_words/words --finish out/photo_finish/finish \\
        --examples out/photo_examples/examples

A stage that still runs gives its newest checkpoint.
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
# stages in their order: what each trained, and the file that has it
STAGES = {
    "decoder": (("decoder.",), FINISHED),
    "words": (("backbone.", "prompter."), ADAPTERS),
    "finish": (("decoder.", "prompter."), FINISHED),
    "examples": (("references.",), FINISHED),
}


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What a stage has of the segmenter: of its end, or of its newest checkpoint."""
    file = folder / name
    if not file.is_file():
        found = sorted(folder.glob("checkpoint-*"), key=lambda c: int(c.name.split("-")[1]))
        file = [c for c in found if (c / "complete").is_file()][-1] / "model.safetensors"
    lead = "segmenter."
    return {k.removeprefix(lead): v for k, v in load_file(file).items() if k.startswith(lead)}


def changes(stages: dict[str, Path], alpha: float, refusal: float) -> tuple[Changes, dict]:
    """All that differs from the model over packages alone, and the origin of that model.

    `refusal` scales the row of `<REJ>`: below 1 it refuses less.
    """
    parts = load("photo-parts", device="cpu", dtype="float32")
    own = dict(parts.named_parameters())
    places = {n: b for n, b in parts.named_buffers() if n.endswith("positional_embedding")}
    found = {n: p.detach() for n, p in own.items() if not n.startswith(FROM_PACKAGES)}
    found |= {n: b for n, b in places.items()}
    beside: dict[str, torch.Tensor] = {}
    for stage, folder in stages.items():
        prefixes, file = STAGES[stage]
        for name, value in trained(folder, file).items():
            if ".lora_" in name:
                layer, half = name.split(".lora_")
                beside[f"lora_{half[0]}:{layer}"] = value
            elif "trainable_tokens_delta" in name:
                beside[f"rows:{ROWS}"] = value
            elif name in found and name.startswith(prefixes):
                found[name] = value
    tensors = {f"whole:{n}": v for n, v in found.items()} | beside
    count = own[ROWS].shape[0]
    rows = list(range(count - 2, count)) if f"rows:{ROWS}" in tensors else []
    if rows:  # the last one is <REJ>
        tensors[f"rows:{ROWS}"] = tensors[f"rows:{ROWS}"] * torch.tensor([[1.0], [refusal]])
    stored = {k: v.to(torch.float16) for k, v in tensors.items()}
    return Changes(stored, rows, alpha, {"name": "reasonseg-photo"}), parts.origin or {}


def main() -> None:
    """Writes the folder and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for stage in STAGES:
        parser.add_argument(f"--{stage}", type=Path, help=f"folder of the stage {stage}")
    parser.add_argument("--alpha", type=float, default=24.0, help="alpha of its LoRA")
    parser.add_argument("--refusal", type=float, default=1.0, help="scale of the row of <REJ>")
    parser.add_argument("--out", type=Path, default=PACKAGED["photo"])
    options = parser.parse_args()
    given = {s: getattr(options, s) for s in STAGES if getattr(options, s) is not None}
    made, origin = changes(given, options.alpha, options.refusal)
    made.save(options.out, origin)
    size = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file())
    print(f"{size / 1e6:.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
