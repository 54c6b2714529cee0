"""Averages the weights of a model with those at the end of an earlier stage of its run.

average.py MODEL STAGE/finished.safetensors OUT
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from reasonseg import Segmenter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("stage", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    segmenter, earlier = (
        Segmenter.from_pretrained(options.model, dtype="float32"),
        load_file(options.stage),
    )
    with torch.no_grad():
        for name, value in segmenter.state_dict().items():
            # tied weights have one name there
            if (other := earlier.get(f"segmenter.{name}")) is not None:
                value.copy_((value + other.float()) / 2)
    segmenter.save_pretrained(options.out, torch.float16)
    print(f"wrote {options.out}")
