"""Layouts of other tools, and files of any kind that are damaged."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from reasonseg.cli.main import main
from reasonseg.datasets.folder import Config, check
from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.export import FORMATS, Record, export
from scripts import fuzz_readers
from scripts.fuzz_folders import FLAT, LAYOUTS, MASK, coco, pairs, samples


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_square(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    data = Config(str(tmp_path)).build()
    assert len(data) and not check(data)
    for sample in data:
        if sample.truth.labels and sample.truth.labels[0] not in ("dog", "sun"):
            mask = sample.truth.masks[0]
            # LabelMe, YOLO and Label Studio count the outline in
            assert not (MASK & ~mask).any() and mask.sum() <= 441, sample.id


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_ends_in_samples_or_one_line(layout, tmp_path):
    def late(*_):
        raise TimeoutError("more than two seconds")

    old = signal.signal(signal.SIGALRM, late)
    try:
        results = {fuzz_readers.attempt(layout, seed, tmp_path) for seed in range(60)}
    finally:
        signal.signal(signal.SIGALRM, old)
    assert results == {"samples", "refused"}


def random_mask(rng, size=(90, 120)):
    small = rng.random((rng.integers(3, 20), rng.integers(3, 20))) * 255
    smooth = Image.fromarray(small.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    mask = np.asarray(smooth) > rng.integers(90, 170)
    mask[rng.integers(size[0])] |= rng.random() < 0.2  # a line
    mask[rng.integers(size[0]), rng.integers(size[1])] = True  # a dot
    return mask


@pytest.mark.parametrize("kind", FORMATS)
def test_every_export_is_read_again(kind, tmp_path):
    """200 random masks in each format."""
    rng = np.random.default_rng(3)
    found, truth = [], {}
    (tmp_path / "photos").mkdir()
    for k in range(50):
        image = tmp_path / "photos" / f"{k}.png"
        Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(image)
        masks = np.stack([random_mask(rng) for _ in range(4)])
        names = [f"thing {j}" for j in range(4)]
        answer = Answer("four", masks, np.ones(4), names, "found")
        found.append(Record.of(answer, str(image)))
        truth |= {(f"{k}.png", name): mask for name, mask in zip(names, masks, strict=True)}
    written = export(found, tmp_path / "out", kind)
    assert (written.images, written.masks) == (50, 200)
    data = Config(str(tmp_path / "out")).build()
    assert len(data) == 200
    for sample in data:
        mask = truth[sample.id.split(":")[0].split("/")[-1], sample.truth.labels[0]]
        found_mask = sample.truth.masks[0]
        assert (found_mask & mask).sum() / (found_mask | mask).sum() >= 0.98, sample.id


def test_cvat_subsets(tmp_path):
    coco(tmp_path)
    for subset, name in (("Train", "a"), ("Validation", "b")):
        folder = tmp_path / "images" / subset
        folder.mkdir(parents=True)
        (tmp_path / f"{name}.jpg").rename(folder / f"{name}.jpg")
        tree = json.loads((tmp_path / "annotations" / "instances_train.json").read_text("utf-8"))
        number = "ab".index(name)
        tree["images"] = [i for i in tree["images"] if i["file_name"] == f"{name}.jpg"]
        tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] == number]
        file = tmp_path / "annotations" / f"instances_{subset}.json"
        file.write_text(json.dumps(tree), encoding="utf-8")
    (tmp_path / "annotations" / "instances_train.json").unlink()
    sizes = {s: len(Config(str(tmp_path), s).build()) for s in ("all", "train", "validation")}
    assert sizes == {"all": 3, "train": 2, "validation": 1}


def test_an_absent_thing_is_a_question(tmp_path):
    samples(tmp_path)
    data = Config(str(tmp_path)).build()
    assert [s.truth.status for s in data] == ["found", "found", "found", "absent"]
    assert data[3].level == "absent" and "<REJ>" in data[3].truth.text


def test_lines_with_strange_separators(tmp_path):
    samples(tmp_path)
    row = {"image": "a.jpg", "text": "the\u2028cat", "masks": [FLAT], "labels": "cat"}
    text = "\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n\r\n"
    (tmp_path / "samples.jsonl").write_text(text, encoding="utf-8", newline="")
    (sample,) = Config(str(tmp_path)).build()
    assert sample.query.text == "the\u2028cat" and sample.truth.labels == ["cat"]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t: t["images"][0].pop("file_name"), "it has no file_name"),
        (lambda t: t["images"].append({**t["images"][0], "file_name": "c.jpg"}), "has two files"),
        (lambda t: t["categories"].append({"id": 0, "name": "x"}), "has two names"),
        (lambda t: t["categories"][0].pop("id"), "its id is None"),
        (lambda t: t.update(annotations={"a": 1}), "is not a list of objects"),
        (lambda t: t["images"][0].update(width=500), "neither one scale"),
        (lambda t: t["images"][0].update(width="wide"), "are no size in pixels"),
    ],
)
def test_coco_mistakes_are_named(spoil, words, tmp_path):
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    spoil(tree)
    file.write_text(json.dumps(tree), encoding="utf-8")
    try:
        found = " ".join(what for _, what in check(Config(str(tmp_path)).build()))
    except InputError as error:
        found = str(error)
    assert words in found


def test_categories_without_names_have_numbers(tmp_path):
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    del tree["categories"][0]["name"]
    file.write_text(json.dumps(tree), encoding="utf-8")
    assert "category 0" in Config(str(tmp_path)).build().labels


def test_foreign_files_never_refuse_a_folder(tmp_path, capsys):
    pairs(tmp_path)
    (tmp_path / "masks" / "._a.png").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "masks" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "masks" / ".ipynb_checkpoints" / "a.png").write_bytes(b"")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    assert len(Config(str(tmp_path)).build()) == 2
    call = ["data", "check", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(call) == 0
    Image.fromarray(MASK).save(tmp_path / "masks" / "c.png")  # a mask without an image
    assert main(call) == 1
    assert "1 masks have no image of their name" in capsys.readouterr().out


def test_what_values_mean_can_be_said(tmp_path, capsys):
    pairs(tmp_path)
    (tmp_path / "labels.json").unlink()
    call = ["data", "check", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*call, "data.classes={1: cup, 2: plate}"]) == 0
    assert "1 cup (400 px in 1 files), 2 plate (400 px" in capsys.readouterr().out
    assert main([*call, "data.void=2"]) == 1
    printed = capsys.readouterr().out
    assert "2 void, not counted" in printed and "is empty" in printed
    assert main([*call, "data.clases=[x]"]) == 2
    assert "no setting 'clases'" in capsys.readouterr().err


def test_a_mask_that_names_two_images(tmp_path):
    pairs(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.png")
    problems = check(Config(str(tmp_path)).build())
    assert len(problems) == 1 and "keep one" in problems[0][1]


def test_label_studio_as_it_exports(tmp_path):
    from scripts.fuzz_folders import label_studio

    label_studio(tmp_path)
    (tmp_path / "a.jpg").rename(tmp_path / "my photo.jpg")
    (task,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    task["data"]["image"] = "/data/upload/3/0a1b2c3d-my%20photo.jpg"
    turned = {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90, "rectanglelabels": ["r"]}
    box = {**task["annotations"][0]["result"][0], "type": "rectanglelabels", "value": turned}
    cancelled = {"was_cancelled": True, "result": [box]}
    task["annotations"] = [cancelled, {"result": [box]}, {"result": []}]
    (tmp_path / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")
    data = Config(str(tmp_path)).build()
    (sample,) = data
    rows, columns = np.nonzero(sample.truth.masks[0])
    # a box of 16 x 12 pixels, turned clockwise around its corner at 32, 12
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (20, 32, 12, 28)
    assert any("of 2 annotations the first is used" in remark.text for remark in data.remarks)


def write(file, tree):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree), encoding="utf-8")


def labelme_of(file, points=((10, 10), (30, 10), (30, 30), (10, 30)), label="cat"):
    shapes = [{"label": label, "points": [list(p) for p in points], "shape_type": "polygon"}]
    write(file.with_suffix(".json"), {"shapes": shapes, "imagePath": file.name})
    shade = sum(file.name.encode()) % 250  # images alike are copies
    Image.new("RGB", (64, 48), (shade, shade, shade)).save(file)


def test_splits_are_whole_words(tmp_path):
    for name in ("train/a.jpg", "val/valve.jpg", "test/testpiece.jpg"):
        (tmp_path / name).parent.mkdir()
        labelme_of(tmp_path / name)
    ids = {s: [e.picture.name for e in Config(str(tmp_path), s).build().entries] for s in SPLITS}
    assert ids == {"train": ["a.jpg"], "validation": ["valve.jpg"], "test": ["testpiece.jpg"]}
    other = tmp_path / "other"
    for name in ("valves/a.jpg", "tests of paint/zz.jpg"):
        (other / name).parent.mkdir(parents=True)
        labelme_of(other / name)
    assert len(Config(str(other), "train").build()) == len(Config(str(other), "val").build()) == 1


SPLITS = ("train", "validation", "test")


def test_a_photo_called_run_is_no_run(tmp_path):
    labelme_of(tmp_path / "run.jpg")
    (tmp_path / "inside").mkdir()
    labelme_of(tmp_path / "inside" / "run.jpg")
    assert len(Config(str(tmp_path)).build()) == 2


def test_masks_of_two_files_about_one_image_are_joined(tmp_path):
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    for k, shift in enumerate((0, 20)):
        Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
        shape = [v + shift * (i % 2 == 0) for i, v in enumerate(square)]
        tree = {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "categories": [{"id": 1, "name": "cup"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [shape]}],
        }
        write(tmp_path / f"job_{k}.json", tree)
    (sample,) = Config(str(tmp_path)).build()
    assert sample.truth.masks[0].sum() == 200
    tree["categories"][0]["name"] = "plate"
    write(tmp_path / "household.json", tree)
    assert Config(str(tmp_path)).build().labels == ["cup", "plate"]


def test_a_picture_of_another_split_is_not_taken(tmp_path):
    coco(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "a.jpg").rename(tmp_path / "train" / "a.jpg")
    tree = json.loads((tmp_path / "annotations/instances_train.json").read_text(encoding="utf-8"))
    (tmp_path / "annotations" / "instances_train.json").unlink()
    write(tmp_path / "annotations" / "instances_val.json", tree)
    problems = [what for _, what in check(Config(str(tmp_path)).build())]
    assert problems and all("a.jpg does not exist" in what for what in problems)


def test_several_parts_of_one_mask_in_a_line(tmp_path):
    samples(tmp_path)
    parts = [[2, 2, 12, 2, 12, 12, 2, 12], [40, 30, 60, 30, 60, 46, 40, 46]]
    row = {"image": "a.jpg", "text": "the cat", "masks": [parts]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (sample,) = Config(str(tmp_path)).build()
    assert sample.truth.masks[0].sum() == 100 + 20 * 16
    row["labels"] = ["a", "b"]
    (tmp_path / "samples.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match="2 labels for 1 masks"):
        Config(str(tmp_path)).build()


def test_void_in_a_mask_of_a_line(tmp_path):
    samples(tmp_path)
    values = MASK.astype(np.uint8)
    values[0:4] = 255
    Image.fromarray(values).save(tmp_path / "m.png")
    sample = Config(str(tmp_path)).build()[0]
    assert sample.truth.masks[0].sum() == MASK.sum() and sample.ignored.sum() == 4 * 64
    Image.fromarray(np.where(MASK, np.uint8(2), np.uint8(1))).save(tmp_path / "m.png")
    sample = Config(str(tmp_path), void=1).build()[0]
    assert sample.truth.masks[0].sum() == MASK.sum() and sample.ignored.sum() == (~MASK).sum()


def test_class_names_of_voc_folders(tmp_path):
    from scripts.fuzz_folders import voc

    voc(tmp_path)
    assert Config(str(tmp_path)).build().labels == ["cat"]  # value 8 of PASCAL VOC
    assert Config(str(tmp_path), classes={8: "cup"}).build().labels == ["cup"]
    names = "_background_\n" + "\n".join(f"thing {k}" for k in range(1, 9))
    (tmp_path / "class_names.txt").write_text(names, encoding="utf-8")
    assert Config(str(tmp_path)).build().labels == ["thing 8"]


def test_shapes_that_are_cut_off_are_said(tmp_path):
    labelme_of(tmp_path / "a.jpg", ((10, 10), (90, 10), (90, 30), (10, 30)))
    data = Config(str(tmp_path)).build()
    assert not check(data)
    assert any("26 pixels out of the image" in remark.text for remark in data.remarks)
