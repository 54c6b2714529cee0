"""A reference bank: what it holds, what it chooses, and what it remembers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import pairs
from tiny_models import reference_model

from reasonseg import InputError
from reasonseg.serving.reference_bank import FEATURES, Bank, add, remove, similarity
from reasonseg.structures.images import read_image


@pytest.fixture(scope="module")
def model():
    """A small fresh model that takes references."""
    return reference_model()


@pytest.fixture
def folder(tmp_path):
    """Six pictures of plain colours, each with its left half marked."""
    rng = np.random.default_rng(0)
    for i, color in enumerate(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 200, 0), (0, 200, 200), (90, 90, 90)]
    ):
        picture = np.clip(np.array(color) + rng.integers(-9, 9, (40, 50, 3)), 0, 255).astype(
            np.uint8
        )
        mask = np.zeros((40, 50), np.uint8)
        mask[:, :25] = 255
        Image.fromarray(picture).save(tmp_path / f"p{i}.png")
        Image.fromarray(mask).save(tmp_path / f"m{i}.png")
        add(
            tmp_path / "bank",
            tmp_path / f"p{i}.png",
            tmp_path / f"m{i}.png",
            "warm" if i in (0, 3) else "cold",
        )
    return tmp_path


def test_add_list_remove(folder):
    bank = Bank(folder / "bank")
    names = [bank.id(i) for i in range(len(bank))]
    assert len(names) == 6 and bank.labels == ["cold", "warm"] and "images/p0.png: warm" in names
    remove(folder / "bank", "images/p0.png: warm")
    assert len(Bank(folder / "bank")) == 5 and not (folder / "bank/images/p0.png").exists()
    with pytest.raises(InputError, match="has no reference"):
        remove(folder / "bank", "images/p0.png: warm")
    with pytest.raises(InputError, match="has no reference"):
        remove(folder / "bank", "images/../../p1.png: cold")


def test_two_labels_of_one_picture_and_two_pictures_of_one_name(folder):
    bank = folder / "bank"
    add(bank, folder / "p0.png", folder / "m1.png", "other")
    assert len(list((bank / "images").iterdir())) == 6
    remove(bank, "images/p0.png: other")
    assert (bank / "images/p0.png").exists()
    Image.fromarray(np.full((40, 50, 3), 7, np.uint8)).save(folder / "p0.png")
    name = add(bank, folder / "p0.png", folder / "m0.png", "warm")
    assert name != "images/p0.png: warm" and len(Bank(bank)) == 7


def test_bad_additions(folder):
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "empty.png")
    with pytest.raises(InputError, match="is empty"):
        add(folder / "bank", folder / "p0.png", folder / "empty.png")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(folder / "small.png")
    with pytest.raises(InputError, match="resize one"):
        add(folder / "bank", folder / "p0.png", folder / "small.png")
    with pytest.raises(InputError, match="cannot be a label"):
        add(folder / "bank", folder / "p0.png", folder / "m0.png", "../x")


@pytest.mark.parametrize("by", ["pixel", "global", "thing"])
def test_a_picture_finds_itself_first(model, folder, by):  # noqa: F811
    bank = Bank(folder / "bank")
    for i in range(len(bank)):
        chosen = bank.select(model, bank.reference(i).image, 3, by=by)
        assert len(chosen) == 3 and chosen[0].similarity == max(c.similarity for c in chosen)
        if by != "thing":
            assert chosen[0].reference.name == bank.id(i) and chosen[0].similarity == pytest.approx(
                1, abs=0.01
            )
        assert sum(c.reference.weight for c in chosen) == pytest.approx(1, abs=1e-4)


def test_only_of_a_label(model, folder):  # noqa: F811
    bank = Bank(folder / "bank")
    chosen = bank.select(model, bank.reference(0).image, 9, label="warm")
    assert {c.reference.label for c in chosen} == {"warm"} and len(chosen) == 2
    with pytest.raises(InputError, match="no reference of 'hot'; it has cold, warm"):
        bank.select(model, bank.reference(0).image, label="hot")


def test_features_are_kept_and_made_anew_where_a_file_changes(model, folder, monkeypatch):  # noqa: F811
    bank = Bank(folder / "bank")
    first = bank.features(model, range(6))
    looked, encoder = [], model.references.patch_encoder

    def encode(images):
        looked.append(len(images))
        return encoder.encode(images)

    monkeypatch.setattr(model.references, "_encoder", replace(encoder, encode=encode))
    again = Bank(folder / "bank").features(model, range(6))
    assert not looked and all(torch.equal(first[i][0], again[i][0]) for i in first)
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(folder / "bank/images/p2.png")
    changed = Bank(folder / "bank").features(model, range(6))
    assert looked == [1]
    place = next(i for i in range(6) if "p2" in bank.id(i))
    assert not torch.equal(first[place][0], changed[place][0])
    mask = np.zeros((40, 50), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(folder / "bank/masks/cold/p2.png")
    moved = Bank(folder / "bank").features(model, range(6))
    assert not torch.equal(changed[place][1], moved[place][1])


def test_a_broken_cache_and_a_folder_without_leave_to_write(model, folder):  # noqa: F811
    bank = Bank(folder / "bank")
    bank.features(model, range(6))
    next((folder / "bank" / FEATURES).iterdir()).write_bytes(b"nonsense")
    assert len(Bank(folder / "bank").features(model, range(6))) == 6


def test_a_broken_file_is_named_and_left_out(model, folder):  # noqa: F811
    (folder / "bank/images/p1.png").write_bytes(b"no picture")
    bank = Bank(folder / "bank")
    assert len(bank.select(model, read_image(folder / "p0.png"), 9)) == 5
    assert len(bank.problems) == 1 and "p1.png" in bank.problems[0]


def test_any_folder_that_finetune_reads(model, tmp_path):  # noqa: F811
    bank = Bank(pairs(tmp_path))
    assert len(bank.select(model, bank.reference(0).image, 2)) == 2


def test_an_empty_bank_is_one_error(tmp_path):
    with pytest.raises(InputError, match="holds no annotated images"):
        Bank(tmp_path)


def test_similarities():
    rng = torch.Generator().manual_seed(0)
    a, b = (
        torch.nn.functional.normalize(torch.randn(16, 8, generator=rng), dim=-1) for _ in range(2)
    )
    shares = torch.ones(16)
    for by in ("pixel", "global", "thing"):
        assert (
            similarity(a, a, shares, by) == pytest.approx(1, abs=1e-5)
            and similarity(a, b, shares, by) < 0.99
        )
    turned = a[torch.randperm(16, generator=rng)]
    assert (
        similarity(a, turned, shares, "thing") == pytest.approx(1, abs=1e-5)
        and similarity(a, turned, shares, "pixel") < 0.9
    )
    with pytest.raises(InputError, match="by"):
        similarity(a, b, shares, "size")


def test_names_that_look_like_patterns_and_pictures_without_an_ending(folder):
    bank = folder / "bank"
    for k in (0, 1):
        Image.fromarray(np.full((40, 50, 3), 60 + k, np.uint8)).save(folder / "photo[1].png")
        add(bank, folder / "photo[1].png", folder / "m0.png", f"kind {k}")
    assert len(Bank(bank)) == 8 and len(list((bank / "images").glob("photo*"))) == 2
    Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(folder / "moving.gif")
    assert add(bank, folder / "moving.gif", folder / "m0.png", "gif") == "images/moving.gif: gif"
    assert len(Bank(bank)) == 9
