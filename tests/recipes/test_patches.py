"""What patches of drawn scenes are taught to say, and how things are told apart."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from reasonseg import InputError
from reasonseg.config.schema import Kind
from reasonseg.datasets.scenes import Config, pack_of
from reasonseg.datasets.synthetic.drawing import draw_scene
from recipes.embedded.codes import Codes
from recipes.embedded.patches import MOST, ApartHeads, Dense, DenseScenes, middles, owners, standing

GRID = 14


class Says(torch.nn.Module):
    """A reader that says the same of everything."""

    def __init__(self, words: torch.Tensor):
        super().__init__()
        self.words = words

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.words


@pytest.fixture(scope="module")
def batch(segmenter):
    objective = Dense(segmenter, copy=False)
    items = objective.dataset(Kind("scenes", Config("train")), 6, 3)
    return objective.collate([items[i] for i in range(6)])


def test_every_thing_has_one_middle_where_its_box_has(font):
    seen = 0
    for seed in range(12):
        scene = draw_scene(np.random.default_rng(seed), pack_of(""), 168)
        owner = owners(scene, GRID)
        share = middles(scene, owner)
        assert not share[owner == 0].any()
        for k in np.unique(owner[owner > 0]):
            mine = np.flatnonzero(owner == k)
            assert share[mine].sum() == pytest.approx(1, abs=1e-5)
            places = (np.stack(np.divmod(mine, GRID)[::-1], 1) + 0.5) / GRID
            away = np.hypot(*(places - scene.objects[k - 1].center).T)
            assert away[share[mine].argmax()] == pytest.approx(away.min())
            seen += 1
    assert seen > 30


def test_every_thing_has_a_patch(font):
    """A crutch may cover less than half of each."""
    thin = [sprite for sprite in pack_of("") if sprite.name in ("crutch", "necklace")]
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed), thin, 168)
        assert set(owners(scene, GRID)) >= set(range(1, len(scene.objects) + 1))


def test_things_know_how_they_stand_among_their_like(font):
    pairs = 0
    for seed in range(30):
        scene = draw_scene(
            np.random.default_rng(seed), pack_of(""), 168, crowd=7 if seed % 2 else 0
        )
        for thing, row in zip(scene.objects, standing(scene), strict=True):
            for (others, before), same in (
                (row[:2], [t for t in scene.objects if t.name == thing.name]),
                (row[2:], [t for t in scene.objects if t.sprite.category == thing.sprite.category]),
            ):
                assert others == min(len(same) - 1, MOST - 1)
                assert before == min(sum(t.center[0] < thing.center[0] for t in same), MOST - 1)
                pairs += others > 0
    assert pairs > 40


def test_labels_say_which_patches_are_of_one_thing(font):
    scenes = DenseScenes(pack_of(""), 168, 12, 4, 2)
    scene = draw_scene(np.random.default_rng(1), pack_of(""), 168)
    labels = scenes.labels(scene)
    for k, thing in enumerate(scene.objects, 1):
        assert set(labels["thing"][labels["owner"] == k]) <= {scenes.classes[thing.name]}
    assert np.array_equal(labels["thing"] == 0, labels["owner"] == 0)


def test_features_that_spell_out_the_truth_have_no_loss():
    owner = torch.tensor([[0, 1, 1, 2, 2, 3]])
    stand = torch.tensor(
        [[[0] * 4, [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0] * 4]]
    )
    middle = torch.tensor([[0.0, 1, 0, 1, 0, 1]])
    labels = {
        "owner": owner,
        "thing": torch.tensor([[0, 5, 5, 5, 5, 9]]),
        "middle": middle,
        "row": stand,
    }
    heads = ApartHeads(8, 4)
    heads.row = Says(40 * torch.nn.functional.one_hot(stand, MOST).float().flatten(2) - 20)
    heads.norm = heads.query = heads.key = torch.nn.Identity()
    heads.query.out_features = 1
    heads.middle = Says(80 * labels["middle"][..., None] - 40)
    spelt = 7 * torch.nn.functional.one_hot(owner, 4).float() - 2
    parts = heads(spelt, labels)
    assert parts["apart"] < 0.01 and parts["together"] == parts["ranked"] == 1
    blurred = spelt.clone()
    blurred[owner == 2] = spelt[owner == 1][0]  # two equal things, as one
    parts = heads(blurred, labels)
    assert parts["twin"] > 1 and parts["together"] == 0 and parts["other"] < 0.01


def test_the_tower_is_kept_where_it_was(segmenter, batch):
    torch.manual_seed(0)
    objective = Dense(segmenter, copy=False, apart=1.0, keep=2.0)
    assert not any(name.startswith("before") for name in objective.state_dict())
    parts = objective(batch)
    assert parts["moved"] == pytest.approx(0, abs=1e-8)
    bias = segmenter.backbone.tower.encoder.layers[-1].mlp.fc2.bias
    with torch.no_grad():
        was = bias.clone()
        bias += 5.0
        shaken = objective(batch)
        bias.copy_(was)
    assert shaken["moved"] > 0.01
    plain = Dense(segmenter, copy=False)
    plain.heads = objective.heads
    assert parts["loss"].item() == pytest.approx(
        (plain(batch)["loss"] + parts["apart"]).item(), rel=1e-4
    )


def test_readers_of_an_earlier_stage_are_taken_on(segmenter, batch, tmp_path):
    torch.manual_seed(1)
    earlier = Dense(segmenter, copy=False, apart=1.0)
    save_model(earlier, str(tmp_path / "finished.safetensors"))
    later = Dense(segmenter, copy=False, apart=1.0, readers=str(tmp_path / "finished.safetensors"))
    for name, value in later.state_dict().items():
        assert torch.equal(value, earlier.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(later(batch)["loss"], earlier(batch)["loss"])


@pytest.mark.parametrize("crowded", [0, 1])
def test_not_every_scene_can_be_crowded(segmenter, crowded):
    with pytest.raises(InputError, match=f"options.crowded {crowded}"):
        Dense(segmenter, crowded=crowded)


def test_what_an_earlier_stage_did_not_leave(segmenter):
    with pytest.raises(InputError, match="options.readers out/none: no such file"):
        Dense(segmenter, apart=1.0, readers="out/none")
    with pytest.raises(InputError, match="options.coder out/none: no such file"):
        Codes(segmenter, fresh=False, coder="out/none")
