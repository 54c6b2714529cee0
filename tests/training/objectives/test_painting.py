"""SegGPT's stage: eyes that start as another model's tower, colours, losses of a step; and the
small SegGPT of the package.
"""

import numpy as np
import pytest
import torch

from reasonseg import Segmenter
from reasonseg.config.schema import Kind
from reasonseg.config.training import read_run
from reasonseg.datasets.episodes import Config as Episodes
from reasonseg.datasets.scenes import Config as Scenes
from reasonseg.decoders.seggpt import block
from reasonseg.evaluation.few_shot import class_means
from reasonseg.evaluation.metrics import count
from reasonseg.nn.pretrained import PACKAGED
from reasonseg.training.objectives.base import resampled
from reasonseg.training.objectives.painting import Painting, painted_colors

CONFIG = "recipes/embedded/configs/seggpt.yaml"


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return Segmenter.build(read_run(CONFIG).model)


@torch.no_grad()
def test_its_first_layers_are_the_tower(fresh, segmenter):
    """On one picture alone they say what the tower says, up to a scale."""
    Painting(fresh, eye="embedded")
    model, tower = fresh.decoder.model.model, segmenter.backbone.tower
    pixels = torch.randn(2, 3, 168, 168)
    states = model.embeddings.patch_embeddings.projection(pixels).permute(0, 2, 3, 1)
    grid = states.shape[1]
    states = states + resampled(model.embeddings.position_embeddings[:, 1:], grid).view(
        1, grid, grid, -1
    )
    for layer in model.encoder.layers[: len(tower.encoder.layers)]:
        states = block(layer, states, None, pixels)
    wanted = tower(pixels, output_hidden_states=True).hidden_states[-1]
    scale = float(wanted.std() / states.std())
    assert scale > 3, "large states would drown fresh layers"
    torch.testing.assert_close(
        states.flatten(1, 2) * scale, wanted, rtol=1e-2, atol=2e-2 * float(wanted.std())
    )


def test_colors_are_apart():
    torch.manual_seed(0)
    colors = painted_colors(200, 0.5)
    assert (colors[:, 0] == 0).all() and (colors[:, 1].norm(dim=1) >= 0.6).all()
    white = (colors[:, 1] == 1).all(1).float().mean()
    assert 0.3 < white < 0.7


def test_a_step_of_each_stage(fresh, font):
    """What each stage of the recipe minimises, and that it reaches what the stage trains."""
    for name, stage in read_run(CONFIG).stages.items():
        objective = Painting(fresh, **stage.options)
        for n, p in objective.named_parameters():
            p.requires_grad_(not stage.train or n.startswith(stage.train))
            p.grad = None
        data = objective.dataset(Kind("scenes", Scenes("train")), 2, 3)
        parts = objective(objective.collate([data[0], data[1]]))
        parts["loss"].backward()
        assert set(parts) - {"loss"} == ({"keep"} if name == "see" else {"paint", "find", "giou"})
        touched = {
            n
            for n, p in objective.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        wanted = "encoder.layers.0" if name == "see" else "encoder.layers.6"
        assert any(wanted in n for n in touched), name
        assert not any("encoder.layers.0" in n for n in touched) or not stage.train


def test_the_packaged_one_paints_what_is_marked(font):
    """Things of withheld classes, turned, scaled and in other hues: far above any object, and
    above all objects.
    """
    model = Segmenter.from_pretrained("tiny-seggpt", device="cpu")
    assert model.backbone is None and "taught on drawn scenes" in model.settings.notice
    data = Episodes(count=40, shots=1).build()
    rows, every = [], []
    samples = [data[i] for i in range(len(data))]
    for sample, answer in zip(samples, model.batch([s.query for s in samples]), strict=True):
        truth = sample.truth.masks[0]
        for kept, mask in ((rows, answer.masks.any(0)), (every, np.ones_like(truth))):
            c = count(mask, truth)
            kept.append({"inter": c.inter, "union": c.union})
    names = [s.truth.labels[0] for s in samples]
    scores = [class_means(names, kept)[0] for kept in (rows, every)]
    assert scores[0] > 0.5 > 0.25 > scores[1], scores


def test_packaged_models_are_small():
    files = [f for place in PACKAGED.values() for f in place.rglob("*.safetensors")]
    assert len(files) >= 5 and sum(f.stat().st_size for f in files) < 45e6
