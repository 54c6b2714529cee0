"""Formats of others, read back with their own libraries."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from reasonseg import Answer, InputError
from reasonseg.structures.export import FORMATS, Exported, Record, export, polygons, records
from reasonseg.structures.masks import to_rle


def blob(*boxes, size=(60, 80)):
    canvas = Image.new("1", (size[1], size[0]))
    for box in boxes:
        ImageDraw.Draw(canvas).ellipse(box, fill=1)
    return np.array(canvas, bool)


@pytest.fixture
def found():
    masks = np.stack([blob((5, 5, 30, 40)), blob((40, 10, 60, 30), (62, 35, 76, 55))])
    answer = Answer("two <SEG> <SEG>", masks, [0.9, 0.5], ["cup", "two part"], "found")
    empty = Answer("none", np.zeros((0, 60, 80), bool), [], [], "no_seg")
    return [
        Record.of(answer, "a/x.jpg"),
        Record.of(empty, "b/y.jpg"),
        Record.of(answer, "b/x.jpg"),
    ], masks


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def rasterised(parts, size=(60, 80)):
    canvas = Image.new("1", (size[1], size[0]))
    for part in parts:
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in part], fill=1, outline=1)
    return np.array(canvas, bool)


def test_coco(found, tmp_path):
    export(found[0], tmp_path, "coco")
    coco = COCO(str(tmp_path / "annotations.json"))
    assert [i["file_name"] for i in coco.imgs.values()] == [
        "a/x.jpg",
        "b/y.jpg",
        "b/x.jpg",
    ] and len(coco.anns) == 4
    for annotation, mask in zip(coco.anns.values(), [*found[1], *found[1]], strict=True):
        assert (
            np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            and annotation["area"] == mask.sum()
        )
    assert {c["name"] for c in coco.cats.values()} == {"cup", "two part"}


def test_coco_and_yolo_are_read_by_supervision(found, tmp_path):
    import supervision as sv

    export(found[0][:2], tmp_path, "yolo")
    for name in ("x", "y"):
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / f"{name}.jpg")
    data = sv.DetectionDataset.from_yolo(
        str(tmp_path / "images"),
        str(tmp_path / "labels"),
        str(tmp_path / "data.yaml"),
        force_masks=True,
    )
    assert data.classes == ["cup", "two part"]
    read = next(d for path, d in data.annotations.items() if path.endswith("x.jpg"))
    assert len(read) == 3  # the mask of two parts is two lines
    assert (
        overlap(read.mask[0], found[1][0]) > 0.9
        and overlap(read.mask[1] | read.mask[2], found[1][1]) > 0.9
    )
    assert len(next(d for path, d in data.annotations.items() if path.endswith("y.jpg"))) == 0


def test_labelme_is_read_by_our_own_reader_and_by_shape(found, tmp_path):
    from reasonseg.datasets.folder import Config

    export(found[0], tmp_path, "labelme")
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", "y.json", "x-2.json"}
    tree = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (tree["imageHeight"], tree["imageWidth"], tree["imagePath"]) == (60, 80, "a/x.jpg")
    groups = [s["group_id"] for s in tree["shapes"]]
    assert groups[0] is None and groups[1] == groups[2] == 1
    for name in ("y.json", "x-2.json"):
        (tmp_path / name).unlink()
    Image.new("RGB", (80, 60)).save(tmp_path / "x.jpg")
    data = Config(str(tmp_path)).build()
    masks = {data[i].truth.labels[0]: data[i].truth.masks[0] for i in range(2)}
    assert (
        overlap(masks["cup"], found[1][0]) > 0.9 and overlap(masks["two part"], found[1][1]) > 0.9
    )


def test_png(found, tmp_path):
    export(found[0], tmp_path, "png")
    labels = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert (
        set(labels) == {"x-0.png", "x-1.png", "x-2-0.png", "x-2-1.png"}
        and labels["x-1.png"]["label"] == "two part"
    )
    assert np.array_equal(np.array(Image.open(tmp_path / "x-1.png")) > 0, found[1][1])


def test_label_studio(found, tmp_path):
    export(found[0][:1], tmp_path, "labelstudio")
    (task,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    results = task["predictions"][0]["result"]
    assert task["data"]["image"] == "a/x.jpg" and [
        r["value"]["polygonlabels"] for r in results
    ] == [
        ["cup"],
        ["two part"],
        ["two part"],
    ]
    parts = [np.array(r["value"]["points"]) * (80, 60) / 100 for r in results]
    assert (
        overlap(rasterised(parts[:1]), found[1][0]) > 0.9
        and overlap(rasterised(parts[1:]), found[1][1]) > 0.9
    )
    assert all(0 <= v <= 100 for r in results for p in r["value"]["points"] for v in p)


def test_label_studio_converts_it_to_coco(found, tmp_path):
    """Predictions that somebody accepted, through Label Studio's own converter and pycocotools."""
    from label_studio_converter import Converter

    export(found[0][:1], tmp_path, "labelstudio")
    (task,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    accepted = {
        "id": 1,
        "data": {"image": "http://x/x.jpg"},
        "annotations": [{"id": 1, **task["predictions"][0]}],
    }
    (tmp_path / "export.json").write_text(json.dumps([accepted]), encoding="utf-8")
    config = (
        '<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">'
        '<Label value="cup"/><Label value="two part"/></PolygonLabels></View>'
    )
    Image.new("RGB", (80, 60)).save(tmp_path / "x.jpg")
    converter = Converter(config, str(tmp_path), download_resources=False)
    converter.convert_to_coco(
        str(tmp_path / "export.json"),
        str(tmp_path / "coco"),
        str(tmp_path / "coco" / "images"),
        is_dir=False,
    )
    coco = COCO(str(tmp_path / "coco" / "result.json"))
    names = {k: c["name"] for k, c in coco.cats.items()}
    for label, mask in zip(("cup", "two part"), found[1], strict=True):
        mine = [
            coco.annToMask(a).astype(bool)
            for a in coco.anns.values()
            if names[a["category_id"]] == label
        ]
        # pycocotools leaves the rim of a polygon out
        assert overlap(np.any(mine, 0), mask) > 0.85, label


def test_labelme_opens_it(found, tmp_path):
    """LabelMe itself brings a desktop toolkit along, so this runs where somebody has it."""
    pytest.importorskip("labelme", reason="labelme is not installed: its own reader is not asked")
    from labelme._label_file import LabelFile

    export([Record("x.jpg", r.size, r.objects) for r in found[0][:1]], tmp_path, "labelme")
    Image.new("RGB", (80, 60)).save(tmp_path / "x.jpg")
    shapes = LabelFile(str(tmp_path / "x.json")).shapes
    assert [s["label"] for s in shapes] == ["cup", "two part", "two part"]
    parts = [np.array(s["points"]) for s in shapes]
    assert (
        overlap(rasterised(parts[:1]), found[1][0]) > 0.9
        and overlap(rasterised(parts[1:]), found[1][1]) > 0.9
    )


def test_outlines():
    count = Exported()
    parts = polygons(to_rle(blob((40, 10, 60, 30), (62, 35, 70, 42))), count)
    assert len(parts) == 2 and len(parts[0]) > len(parts[1]) >= 3 and not count.thin
    speck = np.zeros((60, 80), bool)
    speck[3, 3] = True
    assert polygons(to_rle(speck), count)[0].tolist() == [[3.25, 3.25]] * 3 and count.thin == 1


def test_from_the_folder_of_an_answer(found, tmp_path):
    answer = Answer(
        "it <SEG>", found[1][:1], [0.7], ["cup"], "found", image=np.zeros((60, 80, 3), np.uint8)
    )
    answer.save(tmp_path / "answer")
    (record,) = records(tmp_path / "answer")
    assert record.size == (60, 80) and record.objects[0]["label"] == "cup"
    for kind in FORMATS:
        export(records(tmp_path / "answer"), tmp_path / kind, kind)
        assert any((tmp_path / kind).rglob("*.*"))


def test_what_is_none(tmp_path):
    with pytest.raises(InputError, match="holds no answer.json"):
        list(records(tmp_path))
    with pytest.raises(InputError, match="no format 'xml'"):
        export([], tmp_path, "xml")


def test_names_never_meet(found, tmp_path):
    record = found[0][0]
    several = [
        Record(image, record.size, record.objects) for image in ("p/a.jpg", "q/a.jpg", "r/a-2.jpg")
    ]
    export(several, tmp_path, "labelme")
    pictures = {json.loads(p.read_text(encoding="utf-8"))["imagePath"] for p in tmp_path.iterdir()}
    assert pictures == {"p/a.jpg", "q/a.jpg", "r/a-2.jpg"}
