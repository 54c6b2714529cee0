"""The gain of our two implementations of attention, as ratios of seconds in one process.

    bench_attention.py [--tokens N] [--side N]

`products`: two plain products against torch's fused CPU kernel, forward and backward. `places`:
SegGPT's relative positions as additional channels with a fused kernel, against transformers' own
layer, forward.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from transformers import SegGptConfig
from transformers.models.seggpt.modeling_seggpt import SegGptAttention

from reasonseg.nn.attention import attend
from reasonseg.nn.canvas import attend as placed

RUNS = 8


def seconds(attention, tokens: int, batch: int = 64, heads: int = 6, width: int = 32) -> float:
    """Seconds of one pass forward and backward in bfloat16."""
    parts = [
        torch.randn(batch, heads, tokens, width, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    began = time.perf_counter()
    attention(*parts).float().sum().backward()
    return time.perf_counter() - began


@torch.inference_mode()
def seconds_placed(attention, layer: SegGptAttention, side: int) -> float:
    """Seconds of one canvas of `2 side` x `side` patches in a layer."""
    states = torch.randn(1, 2 * side, side, layer.qkv.in_features)
    began = time.perf_counter()
    attention(layer, states)
    return time.perf_counter() - began


def told(name: str, spent: list[dict[str, float]], theirs: str, ours: str) -> None:
    """Prints the median ratio; the first run is a warm-up."""
    ratios = sorted(run[theirs] / run[ours] for run in spent[1:])
    print(
        f"{name}: {theirs} / {ours} {statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument(
        "--side", type=int, default=28, help="patches across a SegGPT picture (28: as released)"
    )
    options = parser.parse_args()
    ways = {
        "fused": F.scaled_dot_product_attention,
        "products": lambda q, k, v: attend(None, q, k, v)[0],
    }
    spent = [
        {name: seconds(way, options.tokens) for name, way in ways.items()} for _ in range(RUNS)
    ]
    told(f"{options.tokens} tokens", spent, "fused", "products")
    layer = SegGptAttention(SegGptConfig()).eval()
    layers = {"transformers": lambda layer, x: layer(x)[0], "places": placed}
    spent = [
        {n: seconds_placed(w, layer, options.side) for n, w in layers.items()} for _ in range(RUNS)
    ]
    told(f"SegGPT ViT-L, {2 * options.side**2} tokens", spent, "transformers", "places")
