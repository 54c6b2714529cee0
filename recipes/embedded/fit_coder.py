"""Fits a coder to the prompts of a trained model.

    fit_coder.py MODEL OUT.safetensors [--samples N]

The coder of a training run is not part of the package. This one is the least-squares fit of prompt
tokens to the tower's features under the masks they mean. A `codes` stage takes it as
`options.coder`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from reasonseg import Segmenter
from reasonseg.datasets.scenes import Config
from reasonseg.segmenters.prompting import distinct
from reasonseg.structures.images import atomic_write
from reasonseg.training.objectives.base import framed_masks, tower_features
from recipes.embedded.codes import Coder, patch_shares

BATCH = 120
RIDGE = 1e-3  # normalised features have sum 0, so one direction is empty
DATA = Config(
    "train",
    size=252,
    per_scene=6,
    same_shape=20,
    levels=("name", "attribute", "compare", "function"),
)


@torch.inference_mode()
def pairs(segmenter: Segmenter, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features `[m, width]` under masks, and the prompt tokens `[m, d]` of these masks.

    The features are the tower's, normalised.
    """
    data = replace(DATA, count=count, seed=7).build()
    backbone = segmenter.backbone
    pool = Coder(backbone.tower.config.hidden_size, backbone.tower.config.hidden_size)
    nn.init.eye_(pool.project.weight)  # its codes are then the pooled features
    pooled, tokens = [], []
    for start in range(0, count, BATCH):
        samples = [data[i] for i in range(start, min(start + BATCH, count))]
        images, of_image = distinct([s.query.image for s in samples])
        features = tower_features(
            segmenter, backbone.pixels.batch(images, segmenter.device, torch.float32)
        )
        output = backbone.teach(samples, segmenter.prompter.config.at)
        tokens.append(segmenter.prompter(output.states).tokens[:, 0])
        masks = torch.cat(
            [framed_masks(torch.from_numpy(s.truth.masks), backbone.pixels.size) for s in samples]
        )
        pooled.append(
            pool(
                features[[of_image[i] for i in output.sample_index]],
                patch_shares(masks, backbone.grid),
            )
        )
    return torch.cat(pooled), torch.cat(tokens)


def fitted(pooled: torch.Tensor, tokens: torch.Tensor) -> tuple[Coder, float]:
    """The coder that fits the prompter best, and the mean cosine similarity of both.

    `pooled` are `[m, width]`, `tokens` `[m, d]`.
    """
    coder = Coder(pooled.shape[1], tokens.shape[1])
    known, wanted = pooled.double(), tokens.double()
    middle, aim = known.mean(0), wanted.mean(0)
    known, wanted = known - middle, wanted - aim
    ridge = RIDGE * len(known) * known.var() * torch.eye(known.shape[1])
    weight = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted).T
    with torch.no_grad():
        coder.project.weight.copy_(weight)
        coder.norm.bias.copy_(torch.linalg.pinv(weight, rtol=1e-2) @ aim - middle)
        codes = coder.project(pooled + coder.norm.bias)
        return coder, float(nn.functional.cosine_similarity(codes, tokens, dim=-1).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=3600)
    options = parser.parse_args()
    source = None if options.model == "embedded" else options.model
    coder, cosine = fitted(
        *pairs(Segmenter.from_pretrained(source, dtype="float32", device="cpu"), options.samples)
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as aside:
        save_file(
            {f"coder.{name}": value.contiguous() for name, value in coder.state_dict().items()},
            aside,
        )
    print(f"mean cosine {cosine:.3f}; wrote {options.out}")
