"""Folders of one's own images and masks: every layout says the same, and what cannot be used is
named.
"""

import json

import numpy as np
import pytest
from PIL import Image
from small_data import (
    arrow,
    coco,
    indexed,
    indexed_table,
    labelme,
    lines,
    pairs,
    parquet,
    shapes_picture,
)

from reasonseg.datasets.folder import Config, check, said
from reasonseg.errors import InputError

LAYOUTS = {
    "coco": coco,
    "indexed": indexed,
    "labelme": labelme,
    "lines": lines,
    "pairs": lambda root: pairs(root, 4),
}
LAYOUTS |= {"parquet": parquet, "arrow": arrow, "indexed_table": indexed_table}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_masks(tmp_path, layout):
    data = Config(str(LAYOUTS[layout](tmp_path / "data"))).build()
    assert len(data) == 8 and data.labels == ["bar", "disc"] and not check(data)
    for i in range(8):
        sample = data[i]
        number = int(sample.id.split(":")[0].split("/")[-1].split(".")[0])
        number //= 2 if layout in ("parquet", "arrow") else 1  # two rows a picture
        truth = shapes_picture(number)[1][sample.truth.labels[0]]
        found = sample.truth.masks[0]
        if layout == "labelme":  # boxes around them
            assert (found & truth).sum() == truth.sum()
        else:
            assert np.array_equal(found, truth)


def test_validation_images_are_never_trained_on(tmp_path):
    root = str(pairs(tmp_path))
    train, kept = (
        Config(root, "train", share=0.25).build(),
        Config(root, "validation", share=0.25).build(),
    )
    a, b = ({s.id.split(":")[0] for s in part} for part in (train, kept))
    assert len(a) == 9 and len(b) == 3 and not a & b


def test_a_stream_is_a_pure_function_of_its_seed(tmp_path):
    config = Config(str(pairs(tmp_path, 5)), absent=0.3)
    one, again, other = (config.training(40, seed) for seed in (1, 1, 2))
    ids = [one[i].id for i in range(40)]
    assert (
        ids == [again[i].id for i in reversed(range(40))][::-1] != [other[i].id for i in range(40)]
    )
    # nothing is absent: all have both
    assert sorted(set(ids)) == sorted(Config(config.root).build().id(i) for i in range(10))


def test_absent_questions_ask_for_other_images_labels(tmp_path):
    root = pairs(tmp_path, 4)
    (root / "masks" / "bar" / "000.png").unlink()
    stream = Config(str(root), absent=1.0).training(30, 0)
    refused = [s for s in stream if s.truth.status == "absent"]
    assert refused and all(
        "000" in s.id and s.query.text == "the bar" and "<REJ>" in s.truth.text for s in refused
    )


def test_said():
    assert said(["cup", "cup"]) == "The cup <SEG>, the cup <SEG>."


def broken_size(root):
    Image.new("L", (5, 5), 255).save(root / "masks" / "disc" / "001.png")


def empty_mask(root):
    Image.new("L", (128, 96)).save(root / "masks" / "disc" / "001.png")


def no_picture(root):
    (root / "images" / "001.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    "spoil, words, count",
    [
        (broken_size, "was made on 5x5, the image is 128x96", 1),
        (empty_mask, "is empty", 1),
        (no_picture, "001.png", 2),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, spoil, words, count):
    root = pairs(tmp_path, 4)
    spoil(root)
    problems = check(Config(str(root)).build())
    assert len(problems) == count and words in problems[0][1]


def test_ids_that_point_nowhere(tmp_path):
    root = coco(tmp_path)
    tree = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    tree["annotations"][3]["category_id"] = 99
    (root / "annotations.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(InputError, match="annotation 3: category 99 does not exist"):
        Config(str(root)).build()


@pytest.mark.parametrize(
    "line, words", [("{", "line 1"), ('{"image": "a.png"}', "expected image, text and masks")]
)
def test_bad_lines(tmp_path, line, words):
    (tmp_path / "samples.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        Config(str(tmp_path)).build()


def test_tables_without_pictures(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="columns image and mask"):
        Config(str(tmp_path)).build()
    pq.write_table(pa.table({"image": ["/etc/passwd"], "mask": ["m.png"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 0, image: no bytes"):
        Config(str(tmp_path)).build()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a table that can be read"):
        Config(str(tmp_path)).build()


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no annotated images"):
        Config(str(tmp_path)).build()
    with pytest.raises(InputError, match="no folder"):
        Config(str(tmp_path / "nowhere")).build()


def test_pictures_with_one_class_keep_its_name(tmp_path):
    root = indexed(tmp_path)
    mask = np.asarray(Image.open(root / "masks" / "2.png"))
    Image.fromarray(np.where(mask == 1, np.uint8(1), np.uint8(0))).save(root / "masks" / "2.png")
    data = Config(str(root)).build()
    assert data.labels == ["bar", "disc"]
    assert [s.truth.labels for s in data if "2.jpg" in s.id] == [["disc"]]


def test_grey_edges_are_no_classes(tmp_path):
    root = indexed(tmp_path)
    (root / "labels.json").unlink()
    for number in range(4):
        mask = Image.fromarray(shapes_picture(number)[1]["disc"].astype(np.uint8) * 255)
        mask.resize((64, 48)).resize((128, 96), Image.Resampling.BICUBIC).save(
            root / "masks" / f"{number}.png"
        )
    data = Config(str(root)).build()
    assert data.labels == ["thing"] and len(data) == 4
    truth = shapes_picture(0)[1]["disc"]
    assert (data[0].truth.masks[0] & truth).sum() > 0.9 * truth.sum() and data[0].truth.masks[
        0
    ].sum() < 1.1 * truth.sum()


def test_rectangles_and_circles(tmp_path):
    root = labelme(tmp_path)
    shapes = [
        {"label": "disc", "shape_type": "circle", "points": [[40, 40], [50, 40]]},
        {"label": "bar", "shape_type": "rectangle", "points": [[70, 20], [90, 60]]},
        {"label": "stroke", "shape_type": "line", "points": [[1, 1], [5, 5]]},
    ]
    (root / "0.json").write_text(json.dumps({"shapes": shapes}), encoding="utf-8")
    data = Config(str(root)).build()
    areas = {data.entries[i].labels[0]: data[i].truth.masks.sum() for i in range(2)}
    assert areas["bar"] == 21 * 41 and abs(areas["disc"] - np.pi * 10.5**2) < 30
    assert [what for _, what in check(data) if "is a line" in what]


def test_an_answer_says_as_many_seg_as_there_are_masks(tmp_path):
    root = lines(tmp_path)
    rows = [
        json.loads(line)
        for line in (root / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows[0]["answer"] = "It is there."
    (root / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    problems = check(Config(str(root)).build())
    assert len(problems) == 1 and "0 times" in problems[0][1]


def test_skipped_samples_do_not_use_up_the_validation_images(tmp_path):
    config = Config(str(pairs(tmp_path, 4)), "validation", share=0.25)
    first = config.build()
    skipped = tuple(first.id(i) for i in range(len(first)))
    again = Config(config.root, "validation", share=0.25, skipped=skipped).build()
    assert len(again) == 2 and not {again.id(0)} & set(skipped)


def test_other_splits_are_refused(tmp_path):
    with pytest.raises(InputError, match="no split 'tests'"):
        Config(str(pairs(tmp_path, 2)), "tests").build()
