"""The time of an answer, stage by stage, and the least time that the hardware allows.

    python -m scripts.roofline [--model M] [--json FILE]
    python -m scripts.roofline --model lisa-7b --device cuda --compile

The floor of a stage is the larger of two times: its operations (torch's flop counter) over the rate
of a large matrix product, and the bytes of its weights over the bandwidth of a large copy. Both
rates are measured first, in the model's precision. The floor of one token is the time of its
weights' bytes alone. `--model` is a folder or hub id as for `reasonseg ask`, or `lisa-7b`,
`lisa-13b`: those shapes with random weights, which are as fast as real ones. Image preprocessing
and masks at full size have no floor. Reading the question of a follow-up includes loading the
cached keys and values of its image.
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
from scripts.timing import answer_of, environment, forced, image, show, timed


def random_lisa(name: str, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """A LISA of that size with random weights and the embedded model's tokenizer."""
    whole = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            network, huge = lisa_network(LISA[name])
    finally:
        torch.set_default_dtype(whole)
    tokenizer = llava.AutoTokenizer.from_pretrained(EMBEDDED / "backbone")
    network.config.image_token_id = tokenizer.convert_tokens_to_ids(llava.IMAGE)
    how = llava.Config("llava_v1")
    backbone = llava.Llava(
        network,
        tokenizer,
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
    """Median seconds, after two runs that are not counted."""
    return statistics.median([timed(work)[0] for _ in range(runs + 2)][2:])


def hardware(device: torch.device, dtype: torch.dtype, runs: int) -> dict[str, float]:
    """`bandwidth` in bytes per second, `rate` in operations per second.

    The bandwidth is that of a large copy (read and written), the rate that of a large matrix
    product.
    """
    big, side = (2**30, 8192) if device.type == "cuda" else (2**27, 2048)
    source = torch.empty(big, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = 2 * big / seconds(lambda: target.copy_(source), runs)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return {"bandwidth": copied, "rate": 2 * side**3 / seconds(lambda: a @ b, runs)}


def weighs(*modules: nn.Module) -> int:
    """Bytes of all parameters of the modules."""
    return sum(p.nbytes for p in {id(p): p for m in modules for p in m.parameters()}.values())


def language_of(segmenter: Segmenter) -> tuple[nn.Module, nn.Module]:
    """The modules that run for each token: the language model and its head."""
    network = segmenter.backbone.model
    return network.get_decoder(), network.get_output_embeddings()


def works_of(
    segmenter: Segmenter, query: Query, seen: torch.Tensor, prefixes: torch.Tensor
) -> dict:
    """For each stage its computation, and the modules whose weights it reads.

    `seen` are the backbone's features of the query's image, `prefixes` its keys and values.
    """
    backbone, decoder, device = segmenter.backbone, segmenter.decoder, segmenter.device
    dtype, picture = next(backbone.parameters()).dtype, query.image
    encoded, inputs = decoder.encode([picture]), backbone.prompt_inputs([query], seen)
    pixels = {part: part.pixels.batch([picture], device, dtype) for part in (backbone, decoder)}
    network, first = backbone.model, torch.zeros(1, dtype=torch.long, device=device)
    state = torch.zeros(1, backbone.width, device=device, dtype=dtype)
    logits = decoder.decode(encoded, first, segmenter.prompter(state))[0]
    language, drawing = language_of(segmenter), (segmenter.prompter, decoder.model.mask_decoder)
    return {
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
            language,
        ),
        "question read": (
            lambda: backbone.stepper.read(*rest(backbone, query, seen, prefixes)),
            language,
        ),
        "mask drawn": (lambda: decoder.decode(encoded, first, segmenter.prompter(state)), drawing),
        "mask at full size": (lambda: (decoder.restore(logits, query.size) > 0).cpu().numpy(), ()),
    }


def seconds_of_token(
    segmenter: Segmenter,
    query: Query,
    seen: torch.Tensor,
    prefixes: torch.Tensor,
    runs: int,
    n: int,
) -> float:
    """Seconds per token, from an answer of n tokens and one of 1."""
    answer = answer_of(segmenter, n)
    answered = partial(
        segmenter.backbone.generate,
        [query],
        seen,
        max_new_tokens=n,
        temperature=0.0,
        seed=0,
        force_seg=False,
        absent_threshold=0.5,
    )
    with forced(answer):
        all_tokens = seconds(partial(answered, prefixes=prefixes), runs)
    with forced(answer[:1]):
        one_token = seconds(partial(answered, prefixes=prefixes, max_new_tokens=1), runs)
    return (all_tokens - one_token) / (n - 1)


@torch.inference_mode()
def stages(segmenter: Segmenter, tokens: int, runs: int) -> dict:
    """Seconds, floors and their ratio, of every stage, a first answer and a follow-up.

    The answers have `tokens` tokens.
    """
    backbone = segmenter.backbone
    query, answer = Query(image(0), "the cat left of the tree"), answer_of(segmenter, tokens)
    can = hardware(segmenter.device, next(backbone.parameters()).dtype, runs)
    seen = backbone.encode([query.image])
    prefixes = backbone.prefix(seen)
    table: dict[str, dict[str, float]] = {}
    for name, (work, modules) in works_of(segmenter, query, seen, prefixes).items():
        table[name] = {"seconds": seconds(work, runs)}
        if modules:
            with FlopCounterMode(display=False) as counter:
                work()
            flops = counter.get_total_flops()
            table[name]["floor"] = max(flops / can["rate"], weighs(*modules) / can["bandwidth"])
    word = {
        "seconds": seconds_of_token(segmenter, query, seen, prefixes, runs, tokens),
        "floor": weighs(*language_of(segmenter)) / can["bandwidth"],
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
    """The arguments of `Stepper.read` for a question about an image that was read before."""
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
    parser.add_argument("--compile", action="store_true", help="compile the step of a token")
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
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
