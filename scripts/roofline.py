"""Where the time of an answer goes, stage by stage, beside what the hardware allows: floor.py
[--model M] [--json FILE].

The floor of a stage is the larger of its operations (torch's flop counter) over the rate of a large
matrix product, and the bytes of its weights over the bandwidth of a large copy, both measured
first, in the model's precision. A word's is its weights' bytes alone. `--model` is a folder or hub
id as for `reasonseg ask`, or `lisa-7b`, `lisa-13b`: those shapes with random weights, which are as
fast as real ones. Preparing pictures and masks at full size have no floor; reading a follow-up's
question includes taking up what is kept of its picture.

    python -m scripts.roofline --model lisa-7b --device cuda --compile
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from reasonseg import Query, Segmenter
from reasonseg.backbones import llava
from reasonseg.checkpoints.folder import DTYPES
from reasonseg.checkpoints.parts import Parts
from reasonseg.config.model import ModelSettings
from reasonseg.config.schema import Kind
from reasonseg.decoders import sam
from reasonseg.nn.image_processor import ImageProcessor
from reasonseg.nn.pretrained import EMBEDDED
from reasonseg.prompters import seg_token
from reasonseg.segmenters.base import segmenter_of
from reasonseg.training.memory import LISA, lisa_network
from scripts.bench import answer_of, environment, forced, image, show, timed


def random_lisa(name: str, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """LISA of that size with random weights, speaking with the embedded model's tokenizer."""
    whole = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            network, huge = lisa_network(LISA[name])
    finally:
        torch.set_default_dtype(whole)
    spoken = llava.AutoTokenizer.from_pretrained(EMBEDDED / "backbone")
    network.config.image_token_id = spoken.convert_tokens_to_ids(llava.IMAGE)
    how = llava.Config("llava_v1")
    backbone = llava.Llava(
        network,
        spoken,
        ImageProcessor(size=network.config.vision_config.image_size, aspect="crop"),
        how,
    )
    decoder = sam.SamDecoder(huge, ImageProcessor(size=huge.config.vision_config.image_size))
    pointing = seg_token.Config(width_in=backbone.width, width_out=decoder.width)
    parts = {
        "backbone": Kind("llava", how),
        "prompter": Kind("seg_token", pointing),
        "decoder": Kind("sam", sam.Config()),
    }
    settings = ModelSettings(**parts, about={"name": f"{name}, random weights"})
    prompter = pointing.build().to(device, dtype)
    return segmenter_of(Parts(settings, backbone, prompter, decoder)).eval()


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median seconds, after two runs that do not count."""
    return statistics.median([timed(work)[0] for _ in range(runs + 2)][2:])


def hardware(device: torch.device, dtype: torch.dtype, runs: int) -> dict[str, float]:
    """Bytes a second of a large copy (read and written), and operations a second of a large
    matrix product.
    """
    big, side = (2**30, 8192) if device.type == "cuda" else (2**27, 2048)
    source = torch.empty(big, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = 2 * big / seconds(lambda: target.copy_(source), runs)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return {"bandwidth": copied, "rate": 2 * side**3 / seconds(lambda: a @ b, runs)}


def weighs(*modules: nn.Module) -> int:
    """Bytes of all their parameters."""
    return sum(p.nbytes for p in {id(p): p for m in modules for p in m.parameters()}.values())


@torch.inference_mode()
def stages(segmenter: Segmenter, tokens: int, runs: int) -> dict:
    """Seconds, floors and their ratio of every stage, and of a first answer and a follow-up of
    `tokens`.
    """
    backbone, decoder, device = segmenter.backbone, segmenter.decoder, segmenter.device
    dtype, picture = next(backbone.parameters()).dtype, image(0)
    query, answer = Query(picture, "the cat left of the tree"), answer_of(segmenter, tokens)
    can = hardware(device, dtype, runs)
    seen, encoded = backbone.encode([picture]), decoder.encode([picture])
    inputs, prefixes = backbone.prompt_inputs([query], seen), backbone.prefix(seen)
    pixels = {part: part.pixels.batch([picture], device, dtype) for part in (backbone, decoder)}
    network, first = backbone.model, torch.zeros(1, dtype=torch.long, device=device)
    state = torch.zeros(1, backbone.width, device=device, dtype=dtype)
    logits = decoder.decode(encoded, first, segmenter.prompter(state))[0]
    speaking = (network.get_decoder(), network.get_output_embeddings())
    drawing = (segmenter.prompter, decoder.model.mask_decoder)
    said = partial(
        backbone.generate,
        [query],
        seen,
        max_new_tokens=tokens,
        temperature=0.0,
        seed=0,
        force_seg=False,
        absent_threshold=0.5,
    )

    works = {
        "pictures prepared": (
            lambda: [p.pixels.batch([picture], device, dtype) for p in pixels],
            (),
        ),
        "vision tower": (
            lambda: network.get_image_features(pixel_values=pixels[backbone]),
            backbone.encoders,
        ),
        "image encoder": (lambda: decoder.encoder(pixels[decoder]), (decoder.encoder,)),
        "prompt read": (
            lambda: backbone.stepper.read(inputs["inputs_embeds"], None, None, DynamicCache()),
            speaking,
        ),
        "question read": (
            lambda: backbone.stepper.read(*rest(backbone, query, seen, prefixes)),
            speaking,
        ),
        "mask drawn": (lambda: decoder.decode(encoded, first, segmenter.prompter(state)), drawing),
        "mask at full size": (lambda: (decoder.restore(logits, query.size) > 0).cpu().numpy(), ()),
    }
    table: dict[str, dict[str, float]] = {}
    for name, (work, modules) in works.items():
        table[name] = {"seconds": seconds(work, runs)}
        if modules:
            with FlopCounterMode(display=False) as counter:
                work()
            flops = counter.get_total_flops()
            table[name]["floor"] = max(flops / can["rate"], weighs(*modules) / can["bandwidth"])
    with forced(answer):
        all_words = seconds(partial(said, prefixes=prefixes), runs)
    with forced(answer[:1]):
        one_word = seconds(partial(said, prefixes=prefixes, max_new_tokens=1), runs)
    word = {
        "seconds": (all_words - one_word) / (tokens - 1),
        "floor": weighs(*speaking) / can["bandwidth"],
    }
    table[f"a word, of {tokens}"] = word
    whole = {}
    with forced(answer):
        whole["first answer"] = {
            "seconds": seconds(
                lambda: (segmenter.forget(), segmenter(query, max_new_tokens=tokens)), runs
            )
        }
        whole["follow-up"] = {
            "seconds": seconds(lambda: segmenter(query, max_new_tokens=tokens), runs)
        }
    common = (tokens - 1) * word["floor"] + table["mask drawn"]["floor"]
    once = sum(table[name]["floor"] for name in ("vision tower", "image encoder", "prompt read"))
    whole["first answer"]["floor"] = once + common
    whole["follow-up"]["floor"] = table["question read"]["floor"] + common
    for row in (*table.values(), *whole.values()):
        row |= {"times the floor": row["seconds"] / row["floor"]} if "floor" in row else {}
    return {"hardware": can, "stages": table, "answers": whole}


def rest(backbone, query: Query, seen: torch.Tensor, prefixes: torch.Tensor) -> tuple:
    """What `Stepper.read` is given of a question whose picture was read before."""
    inputs = backbone.prompt_inputs([query], seen, prefixes=prefixes)
    known = prefixes.shape[-2]
    positions = torch.arange(known, inputs["inputs_embeds"].shape[1], device=seen.device)[None]
    return inputs["inputs_embeds"][:, known:], positions, None, inputs["past_key_values"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="folder, hub id, lisa-7b or lisa-13b (default: the embedded model)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="default: bfloat16 on CUDA, float32 on a CPU"
    )
    parser.add_argument(
        "--tokens", type=int, default=20, help="of the answer (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="the step of a word")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    if options.model in LISA:
        segmenter = random_lisa(options.model, device, dtype)
    else:
        segmenter = Segmenter.from_pretrained(options.model, device=device, dtype=dtype)
    if options.compile:
        segmenter.backbone.compile()
    about = environment(segmenter) | {"dtype": str(dtype), "compiled": options.compile}
    found = {**stages(segmenter, options.tokens, options.runs), "environment": about}
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
