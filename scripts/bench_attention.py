"""What `attention.attend` gains over torch's fused CPU kernel, forward and backward, as a ratio.

bench_attention.py [--tokens N]
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from reasonseg.attention import attend


def seconds(attention, tokens: int, batch: int = 64, heads: int = 6, width: int = 32) -> float:
    """One pass forward and backward in bfloat16."""
    parts = [torch.randn(batch, heads, tokens, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    began = time.perf_counter()
    attention(*parts).float().sum().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=196)
    tokens = parser.parse_args().tokens
    ways = {"fused": F.scaled_dot_product_attention, "products": lambda q, k, v: attend(None, q, k, v)[0]}
    spent = [{name: seconds(way, tokens) for name, way in ways.items()} for _ in range(8)][1:]  # the first warms up
    ratios = sorted(run["fused"] / run["products"] for run in spent)
    print(f"{tokens} tokens: fused / products {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
