"""Import of a model with the shapes of LISA-7B and random weights, in the released layout.

It is imported, it answers a question, and time and memory are measured.

    bench_import.py [--layers N] [--device D] [--dtype T] [--quantization int8|nf4]
                    [--folder DIR] [--keep] [--json FILE]
    bench_import.py --shapes

`--shapes` only checks, on the meta device, that every tensor of the released model has a place in
ours. The weights take 16 GB of disk and as much memory; `--layers 2` is a small version. Needs the
extra `sam` for the names of SAM's tensors.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from reasonseg import Query, Segmenter
from reasonseg.datasets.synthetic.knowledge import Knowledge
from reasonseg.nn.llama_tokenizer import LlamaPieces
from reasonseg.nn.meta_init import WeightFiller, meta_init

WIDTH, INNER, HEADS, ROWS = 4096, 11008, 32, 32003
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
CLIP |= {"image_size": 224, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu"}
SHARD = 3 * 2**30


def shapes(layers: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name, shape and stored precision of all tensors of a released LISA-7B with `layers`
    layers.
    """
    from segment_anything import sam_model_registry

    half, full = torch.bfloat16, torch.float32
    found = {
        "model.embed_tokens.weight": ((ROWS, WIDTH), half),
        "lm_head.weight": ((ROWS, WIDTH), half),
    }
    found["model.norm.weight"] = ((WIDTH,), half)
    for i in range(layers):
        lead = f"model.layers.{i}."
        found |= {f"{lead}self_attn.{p}_proj.weight": ((WIDTH, WIDTH), half) for p in "qkvo"}
        found |= {f"{lead}mlp.{p}_proj.weight": ((INNER, WIDTH), half) for p in ("gate", "up")}
        found[f"{lead}mlp.down_proj.weight"] = ((WIDTH, INNER), half)
        found |= {
            f"{lead}{p}_layernorm.weight": ((WIDTH,), half) for p in ("input", "post_attention")
        }
        found[f"{lead}self_attn.rotary_emb.inv_freq"] = ((WIDTH // HEADS // 2,), full)
    found |= {
        "model.mm_projector.weight": ((WIDTH, 1024), half),
        "model.mm_projector.bias": ((WIDTH,), half),
    }
    for number, (rows, columns) in {0: (WIDTH, WIDTH), 2: (256, WIDTH)}.items():
        found[f"model.text_hidden_fcs.0.{number}.weight"] = ((rows, columns), full)
        found[f"model.text_hidden_fcs.0.{number}.bias"] = ((rows,), full)
    with torch.device("meta"):
        original = sam_model_registry["vit_h"]().state_dict()
    return found | {f"model.visual_model.{k}": (tuple(v.shape), full) for k, v in original.items()}


def config(layers: int) -> dict:
    """The config.json, as released."""
    return {
        "architectures": ["LISAForCausalLM"],
        "model_type": "llava",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": ROWS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_hidden_size": 1024,
        "mm_use_im_start_end": True,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "out_dim": 256,
        "train_mask_decoder": True,
        "vision_tower": "openai/clip-vit-large-patch14",
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def tokenizer(folder: Path) -> None:
    """Writes a SentencePiece tokenizer of our own words, with LISA's three tokens."""
    import io

    import sentencepiece

    words = [w for p in Knowledge.load().properties.values() for w in p.wordings] + [
        "USER ASSISTANT Sure, it is Please output segmentation mask."
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        model_type="bpe",
        vocab_size=2000,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = LlamaPieces(model.getvalue(), {}, legacy=True)
    pieces.add_tokens(["[SEG]", "<im_start>", "<im_end>"])
    pieces.save_pretrained(folder)


def write(folder: Path, layers: int) -> int:
    """Writes random weights in shards as released; returns the bytes of the largest shard."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(layers), indent=1), encoding="utf-8")
    tokenizer(folder)
    generator = torch.Generator().manual_seed(0)
    shard, size, number, index, largest = {}, 0, 1, {}, 0
    wanted = shapes(layers)
    for i, (name, (shape, dtype)) in enumerate(wanted.items()):
        value = torch.empty(shape, dtype=dtype)
        value = value.fill_(1.0) if value.ndim == 1 else value.normal_(0, 0.02, generator=generator)
        shard[name], size = value, size + value.nbytes
        if size > SHARD or i == len(wanted) - 1:
            file = f"pytorch_model-{number:05}.bin"
            torch.save(shard, folder / file)
            index |= dict.fromkeys(shard, file)
            largest = max(largest, size)
            shard, size, number = {}, 0, number + 1
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": index}), encoding="utf-8"
    )
    CLIPVisionModel(CLIPVisionConfig(**CLIP)).to(torch.float16).save_pretrained(
        folder / "clip-vit-large-patch14"
    )
    return largest


def prove_shapes() -> None:
    """Fills a LISA-7B on the meta device with tensors that have only shapes.

    Raises `InputError` where one is missing, left over or of another shape.
    """
    from reasonseg.checkpoints.released import llava, sam
    from reasonseg.checkpoints.released.layout import Layout

    class Shapes:
        of = shapes(32)

        def shape(self, key):
            return self.of[key][0]

    names = {k: k for k in Shapes.of if not k.endswith("inv_freq")}
    layout = Layout(Path("LISA-7B"), config(32), Shapes(), names)
    with meta_init():
        vision = CLIPVisionConfig(**CLIP).to_dict()
        model = llava.LlavaForConditionalGeneration(llava.network_of(layout, vision))
        decoder = sam.meta_sam(layout.sam_keys, lambda k: layout.shape("model.visual_model." + k))
    whole = torch.nn.ModuleDict(
        {"backbone": torch.nn.ModuleDict({"model": model}), "decoder": decoder}
    )
    filling = WeightFiller(whole, torch.device("meta"), torch.bfloat16, layout.folder)
    for name in names:
        value = torch.empty(layout.shape(name), device="meta")
        if name.startswith("model.visual_model."):
            ours = sam.renamed(
                name.removeprefix("model.visual_model."), sam.head_layers(layout.sam_keys)
            )
            filling.put([f"decoder.model.{o}" for o in ours], value, name)
        elif not name.startswith("model.text_hidden_fcs."):
            filling.put(["backbone." + llava.target(name)], value, name)
    elsewhere = (
        "backbone.model.model.vision_tower.",
        "backbone.model.model.multi_modal_projector.linear_2.",
    )
    filling.done(allow=elsewhere)
    print(
        f"{len(Shapes.of)} tensors, all have a place; only those of CLIP and the identity come "
        "from elsewhere"
    )


def peak_host() -> int:
    """The peak memory of this process in bytes, with mapped files (Linux)."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def measure(folder: Path, options) -> dict:
    """Imports the model and answers a question; returns seconds and peak memory."""
    before = peak_host()
    began = time.perf_counter()
    model = Segmenter.from_pretrained(
        folder, device=options.device, dtype=options.dtype, quantization=options.quantization
    )
    loaded = time.perf_counter() - began
    host = peak_host()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    on_gpu = model.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    began = time.perf_counter()
    answer = model(Query(image, "the cup"), max_new_tokens=4, force_seg=True)
    asked = time.perf_counter() - began
    assert answer.masks.shape == (1, 480, 640)
    gib = 2**30
    found = {
        "seconds_to_load": loaded,
        "seconds_to_answer": asked,
        "model_gib": size / gib,
        "host_before_gib": before / gib,
    }
    found["host_peak_loading_gib"] = host / gib
    if on_gpu:
        found |= {
            "device_peak_loading_gib": peak / gib,
            "device_peak_gib": torch.cuda.max_memory_allocated() / gib,
        }
        found["device"] = torch.cuda.get_device_name()
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=["int8", "nf4"])
    parser.add_argument(
        "--folder", type=Path, help="where the weights are written, or are from an earlier run"
    )
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.shapes:
        raise SystemExit(prove_shapes())
    folder = options.folder or Path(tempfile.mkdtemp()) / "lisa"
    largest = None if folder.exists() else write(folder, options.layers)
    if largest:
        print(f"wrote {folder}, largest shard {largest / 2**30:.2f} GiB")
    if largest:  # measured in a new process: writing raises the memory peak of this one
        again = [
            sys.executable,
            "-m",
            "scripts.bench_import",
            "--folder",
            str(folder),
            "--dtype",
            options.dtype,
        ]
        again += ["--device", options.device] if options.device else []
        again += ["--quantization", options.quantization] if options.quantization else []
        again += ["--json", str(options.json)] if options.json else []
        code = subprocess.run(again).returncode
        if not options.keep:
            shutil.rmtree(folder)
        raise SystemExit(code)
    found = measure(folder, options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
