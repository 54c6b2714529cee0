"""What the language model's states are asked beside the answers."""

import numpy as np
import pytest
import torch

from reasonseg import InputError
from reasonseg.backbones.llava import Pack
from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import Config, pack_of
from reasonseg.datasets.synthetic.knowledge import Knowledge
from reasonseg.nn.packing import IGNORED
from recipes.embedded.codes import Codes
from recipes.embedded.patches import MOST as STANDING
from recipes.embedded.properties import MOST, NOT_ASKED, Properties, facts_of

LEVELS = ("function", "missing", "name", "alike", "multi")


@pytest.fixture(scope="module")
def objective(segmenter):
    torch.manual_seed(0)
    coder = Codes(segmenter, fresh=False).coder
    return Properties(segmenter, aim=0.7, drawn=0.0, coder=coder)


@pytest.fixture(scope="module")
def batch(objective):
    config = Config(
        "train", size=252, per_scene=3, same_shape=32, levels=LEVELS, shown=1, labelled=0.5
    )
    items = objective.dataset(Kind("scenes", config), 24, 5)
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
    names_of = {number: name for name, number in objective.numbers.items()} | {0: ""}
    asked = {"function": 0, "missing": 0}
    for sample, about, things in zip(
        batch["samples"], batch["about"].tolist(), batch["things"], strict=True
    ):
        if sample.level in ("name", "alike", "multi"):
            assert about == NOT_ASKED
            continue
        asked[sample.level] += 1
        asked_for = knowledge.properties[names[about]]
        wordings = asked_for.wordings + asked_for.more + asked_for.keywords
        assert any(words.lower() in sample.query.text.lower() for words in wordings), (
            sample.query.text,
            names[about],
        )
        there = [
            number for number in np.unique(things) if names_of[number] not in sample.truth.labels
        ]
        assert not objective.held[there, about].any()
        assert [
            bool(objective.held[objective.numbers[name], about]) for name in sample.truth.labels
        ] == [True] * (sample.level == "function")
    assert all(asked.values())


def test_prompts_end_where_answers_begin(batch, objective):
    backbone, samples = objective.segmenter.backbone, batch["samples"]
    assert any(s.query.references for s in samples)  # which take places in the prompt
    row = [k // 3 for k in range(len(samples))]
    start = backbone.prompt_ids(samples[0].query).index(backbone.image_id)
    ends = objective.ends(samples, row, start)
    for r in range(len(samples) // 3):
        turns = [
            (backbone.prompt_ids(s.query), backbone.answer_ids(s.truth.text), 0)
            for s in samples[3 * r : 3 * r + 3]
        ]
        pack = Pack.of(turns, backbone.image_id, backbone.patches)
        taught = [i for i, label in enumerate(pack.labels) if label != IGNORED]
        first = [next(i for i in taught if pack.segments[i] == k) for k in (1, 2, 3)]
        assert ends[3 * r : 3 * r + 3] == first


def test_the_readers_teach_the_layers_below_them(batch, objective):
    objective.zero_grad()
    parts, known = objective(batch), []
    assert parts["loss"].item() == pytest.approx(
        float(parts["text"])
        + 0.7 * float(parts["aim"])
        + 0.5 * float(parts["shown"] + parts["asked"]),
        rel=1e-3,
    )
    layers = objective.segmenter.backbone.layers
    watches = [
        layers[i].register_forward_hook(lambda _, inputs, output: known.append(output.float()))
        for i in (1, 2)
    ]
    super(Properties, objective).forward(batch)
    for watch in watches:
        watch.remove()
    read = objective.known(*map(objective.norm, known), batch)
    (read["shown"] + read["asked"]).backward(retain_graph=True)
    grads = [
        None if (g := layer.self_attn.q_proj.weight.grad) is None else float(g.abs().sum())
        for layer in layers
    ]
    assert grads[0] > 0 and grads[1] > 0 and grads[2:] == [None, None]
    read["number"].backward()
    assert (
        layers[2].self_attn.q_proj.weight.grad.abs().sum() > 0
        and layers[3].self_attn.q_proj.weight.grad is None
    )
    objective.zero_grad()


def test_numbers_are_those_of_the_answers(batch):
    for sample, number, stand in zip(
        batch["samples"], batch["number"].tolist(), batch["stand"], strict=True
    ):
        assert number == (len(sample.truth.masks) if sample.level == "multi" else NOT_ASKED)
        # every cat: one of them says how many
        if sample.level == "multi" and len(set(sample.truth.labels)) == 1:
            assert stand[:, 0].max() >= min(number, STANDING) - 1


def test_masks_yet_to_come_are_counted_down_at_their_marks(batch, objective):
    backbone, samples = objective.segmenter.backbone, batch["samples"]
    row = [k // 3 for k in range(len(samples))]
    start = backbone.prompt_ids(samples[0].query).index(backbone.image_id)
    of, at, count = objective.coming(
        samples, objective.ends(samples, row, start), batch["number"].tolist()
    )
    assert count[0] == NOT_ASKED and {samples[k].level for k in of[1:].tolist()} == {"multi"}
    turns = [(backbone.prompt_ids(s.query), backbone.answer_ids(s.truth.text), 0) for s in samples]
    packs = [
        Pack.of(turns[k : k + 3], backbone.image_id, backbone.patches)
        for k in range(0, len(turns), 3)
    ]
    for k, sample in enumerate(samples):
        places = at[1:][of[1:] == k].tolist()
        marked = [i for i in places if packs[row[k]].ids[i] == backbone.markers.seg]
        number = len(sample.truth.masks) if sample.level == "multi" else 0
        assert (
            marked == places[1::2]
            and [i - 1 for i in marked] == places[::2]
            and len(marked) == number
        )
        left = count[1:][of[1:] == k].tolist()
        assert left[::2] == list(range(number, 0, -1)) and left[1::2] == list(
            range(number - 1, -1, -1)
        )


def test_counting_is_weighed(batch, objective):
    parts = objective(batch)
    objective.counting = 0.5
    try:
        counted = objective(batch)
    finally:
        objective.counting = 0.0
    extra = 0.5 * sum(parts[name] for name in ("number", "coming", "name", "kind"))
    assert counted["loss"].item() == pytest.approx((parts["loss"] + extra).item(), rel=1e-3)


def test_what_is_read_is_read_at_its_place(batch, objective):
    """Readers that know where a fact is written read it: states that spell out the truth have no
    loss.
    """
    samples, facts = batch["samples"], len(objective.properties)
    backbone, row = objective.segmenter.backbone, [k // 3 for k in range(len(batch["samples"]))]
    start = backbone.prompt_ids(samples[0].query).index(backbone.image_id)
    states = torch.full((row[-1] + 1, 700, facts), -9.0)
    states[:, start : start + backbone.patches] = (
        18 * objective.held[torch.from_numpy(batch["things"][::3])] - 9
    )
    for r, end, about in zip(
        row, objective.ends(samples, row, start), batch["about"].tolist(), strict=True
    ):
        states[r, end, about] = 9.0 if about != NOT_ASKED else -9.0
    higher = torch.full((row[-1] + 1, 700, MOST + 1), -9.0)
    for r, end, number in zip(
        row, objective.ends(samples, row, start), batch["number"].tolist(), strict=True
    ):
        higher[r, end, max(number, 0)] = 9.0
    of, at, count = objective.coming(
        samples, objective.ends(samples, row, start), batch["number"].tolist()
    )
    for k, place, number in zip(of[1:].tolist(), at[1:].tolist(), count[1:].tolist(), strict=True):
        higher[row[k], place, number] = 9.0
    kept = objective.shown, objective.asked, objective.number, objective.row
    objective.shown = objective.asked = objective.number = torch.nn.Identity()
    objective.row = torch.nn.LazyLinear(4 * STANDING)  # whatever it says, it is not asked here
    try:
        known = objective.known(states, higher, batch)
    finally:
        objective.shown, objective.asked, objective.number, objective.row = kept
    assert known["facts"] == known["heard"] == known["counted"] == known["followed"] == 1
    assert all(known[part] < 0.01 for part in ("shown", "asked", "number", "coming"))


def test_swapped_questions_are_taught_from_the_colon_on(objective, segmenter):
    swapping = Properties(segmenter, aim=0.7, drawn=0.0, coder=objective.coder, swapped=1.0)
    config = Config("train", size=252, per_scene=3, same_shape=32, levels=LEVELS[:3])
    data, plain = (o.dataset(Kind("scenes", config), 12, 5) for o in (swapping, objective))
    items = [(data[i], plain[i]) for i in range(12)]
    for (swapped, *_, about, _), (sample, *_) in items:
        assert swapped.truth.text == sample.truth.text and np.array_equal(
            swapped.query.image, sample.query.image
        )
        if sample.level == "name":
            assert swapped.query.text == sample.query.text
        else:
            assert (
                swapped.level == "swapped"
                and about == NOT_ASKED
                and swapped.query.text != sample.query.text
            )
    samples, backbone = [item[0] for item, _ in items], segmenter.backbone
    given = swapping.given(samples)
    assert 0 in given and len(set(given)) > 2
    for sample, count in zip(samples, given, strict=True):
        rest = sample.truth.text.split(": ")[-1]
        assert backbone.decode(backbone.answer_ids(sample.truth.text)[count:]) == rest
    with torch.no_grad():
        whole, less = backbone.teach(samples), backbone.teach(samples, given=given)
    assert whole.tokens - less.tokens == sum(given)
    assert torch.equal(whole.states, less.states) and less.cross_entropy < whole.cross_entropy


@pytest.mark.parametrize(
    "options, words",
    [({"layer": 0}, "options.layer 0"), ({"layer": 5}, "layers 1 to 4")],
)
def test_a_layer_there_is_none_of(segmenter, options, words):
    with pytest.raises(InputError, match=words):
        Properties(segmenter, coder=None, drawn=0.0, **options)


@pytest.mark.parametrize(
    "change", [{"size": 250}, {"withheld": True}, {"levels": ("shown",), "shown": 1}]
)
def test_scenes_it_cannot_know(objective, change):
    with pytest.raises(InputError, match=r"data\.(size|kind)"):
        objective.dataset(Kind("scenes", Config("train", **{"size": 252, **change})), 4, 0)
