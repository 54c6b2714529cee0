"""What the language model's states are asked beside the answers."""

import numpy as np
import pytest
import torch

from reasonseg.backbones.llava import Pack
from reasonseg.config import Kind
from reasonseg.datasets.scenes import Config, pack_of
from reasonseg.objectives import Codes, Properties
from reasonseg.objectives.properties import NOT_ASKED, facts_of
from reasonseg.scenes.knowledge import Knowledge
from reasonseg.speaking import IGNORED

LEVELS = ("function", "missing", "name")


@pytest.fixture(scope="module")
def objective(segmenter):
    torch.manual_seed(0)
    coder = Codes(segmenter, fresh=False).coder
    return Properties(segmenter, aim=0.7, drawn=0.0, coder=coder)


@pytest.fixture(scope="module")
def batch(objective):
    config = Config("train", size=252, per_scene=3, same_shape=32, levels=LEVELS)
    items = objective.dataset(Kind("scenes", config), 18, 5)
    return objective.collate([items[i] for i in range(len(items))])


def test_facts_are_those_of_the_knowledge_file(font):
    sprites, knowledge = pack_of(""), Knowledge.load()
    facts, held = facts_of(sprites)
    assert held.shape == (len(sprites) + 1, len(facts)) and not held[0].any()
    for row, sprite in zip(held[1:], sprites, strict=True):
        true = {facts[i] for i in np.flatnonzero(row)}
        thing = knowledge.things[sprite.name]
        assert true == {f"name {thing.name}", f"kind {thing.category}", *thing.properties}


def test_questions_know_what_they_ask_for(batch, objective):
    names = list(objective.properties)
    knowledge = Knowledge.load()
    asked = {"function": 0, "missing": 0}
    for sample, about, things in zip(batch["samples"], batch["about"].tolist(), batch["things"], strict=True):
        if sample.level == "name":
            assert about == NOT_ASKED
            continue
        asked[sample.level] += 1
        wordings = knowledge.properties[names[about]].wordings
        assert any(words.lower() in sample.query.text.lower() for words in wordings), (sample.query.text, names[about])
        holders = objective.held[torch.from_numpy(np.unique(things))][:, about]
        assert holders.sum() == (1 if sample.level == "function" else 0)
    assert all(asked.values())


def test_prompts_end_where_answers_begin(batch, objective):
    backbone, samples = objective.segmenter.backbone, batch["samples"]
    row = [k // 3 for k in range(len(samples))]
    start = backbone.prompt_ids(samples[0].query).index(backbone.image_id)
    ends = objective.ends(samples, row, start)
    for r in range(len(samples) // 3):
        turns = [(backbone.prompt_ids(s.query), backbone.answer_ids(s.truth.text)) for s in samples[3 * r : 3 * r + 3]]
        pack = Pack.of(turns, backbone.image_id, backbone.patches)
        taught = [i for i, label in enumerate(pack.labels) if label != IGNORED]
        first = [next(i for i in taught if pack.segments[i] == k) for k in (1, 2, 3)]
        assert ends[3 * r : 3 * r + 3] == first


def test_the_readers_learn_and_teach_the_language_model(batch, objective):
    parts = objective(batch)
    parts["loss"].backward()
    layers = objective.segmenter.backbone.layers
    assert all(layers[k].self_attn.q_proj.weight.grad.abs().sum() > 0 for k in (0, 1))
    objective.zero_grad()
    readers = [*objective.norm.parameters(), *objective.shown.parameters(), *objective.asked.parameters()]
    steps, losses = torch.optim.Adam(readers, lr=0.03), []
    with torch.no_grad():
        hidden = []
        watch = layers[1].register_forward_hook(lambda _, inputs, output: hidden.append(output))
        super(Properties, objective).forward(batch)
        watch.remove()
    for _ in range(25):
        known = objective.known(objective.norm(hidden[0].float()), batch)
        steps.zero_grad()
        (known["shown"] + known["asked"]).backward()
        steps.step()
        losses.append((float(known["shown"].detach()), float(known["asked"].detach())))
    assert losses[-1][0] < losses[0][0] / 2 and losses[-1][1] < losses[0][1] / 2
    assert parts["loss"].item() == pytest.approx(
        float(parts["text"]) + 0.7 * float(parts["aim"]) + 0.5 * float(parts["shown"] + parts["asked"]), rel=1e-3
    )
