"""Annotating on a real local Ray: every picture once, whatever happens."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from reasonseg import InputError, Query
from reasonseg.serving.annotations import listing, only_run, pictures_of
from reasonseg.serving.ray_annotate import Task, annotate, questions_in
from reasonseg.structures.images import read_image
from reasonseg.structures.masks import from_rle

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes):
    """Ten pictures and a broken one."""
    place = tmp_path_factory.mktemp("pictures")
    for k, sample in enumerate(scenes[:10]):
        Image.fromarray(sample.query.image).save(place / f"{k}.png")
    (place / "broken.jpg").write_bytes(b"no picture")
    return place


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def task():
    return Task(("the animal", "everything"), batch=4, model={"device": "cpu"})


@pytest.fixture(scope="module")
def whole(cluster, folder, task, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, annotate(folder, out, task, shard=3, progress=False)


def rows_of(out):
    return [
        row
        for file in sorted(out.glob("part-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


def test_every_picture_is_a_row_and_says_what_the_model_says(whole, folder, task, segmenter):
    out, counts = whole
    rows = rows_of(out)
    assert [os.path.basename(r["image"]) for r in rows] == sorted(p.name for p in folder.iterdir())
    assert list(pq.read_schema(out / "part-00000.parquet").names) == [
        "image",
        "status",
        "text",
        "objects",
        "error",
    ]
    assert counts["error"] == 1 and sum(counts.values()) == 11
    broken = next(r for r in rows if "broken" in r["image"])
    assert (
        broken["status"] == "error" and "not an image" in broken["error"] and not broken["objects"]
    )
    row = rows[0]
    answers = segmenter.batch([Query(read_image(row["image"]), text) for text in task.questions])
    assert row["text"] == "\n".join(a.text for a in answers) and row["error"] is None
    masks = [m for a in answers for m in a.masks]
    assert len(row["objects"]) == len(masks)
    for o, mask in zip(row["objects"], masks, strict=True):
        assert (from_rle(o["segmentation"]) ^ mask).mean() < 1e-3 and o[
            "question"
        ] in task.questions


def test_coco_reads_it(whole):
    out, _ = whole
    coco, rows = COCO(str(out / "annotations.json")), rows_of(out)
    tree = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
    assert [os.path.basename(e["file_name"]) for e in tree["errors"]] == ["broken.jpg"]
    assert len(coco.imgs) == len(rows) - 1 and len(coco.anns) == sum(
        len(r["objects"]) for r in rows
    )
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        assert coco.annToMask(annotation).shape == (image["height"], image["width"])
        assert coco.annToMask(annotation).sum() == annotation["area"]
    assert {p.name for p in out.iterdir() if p.suffix == ".parquet"} == {
        f"part-{k:05d}.parquet" for k in range(4)
    }


def test_what_is_missing_is_done_and_what_is_new_is_added(whole, cluster, folder, task, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / "part-00002.parquet").unlink()
    (out / "annotations.json").unlink()
    stamp = (out / "part-00000.parquet").stat().st_mtime_ns
    annotate(folder, out, task, shard=3, progress=False)
    assert (
        rows_of(out) == rows_of(whole[0])
        and (out / "part-00000.parquet").stat().st_mtime_ns == stamp
    )
    assert (out / "annotations.json").read_bytes() == (whole[0] / "annotations.json").read_bytes()
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    shards = listing(out, [*pictures_of(folder), *pictures_of(more)], 3)
    assert len([p for shard in shards for p in shard]) == 22 and shards[:4] == listing(
        whole[0], [], 3
    )


def test_other_settings_are_refused(whole, folder):
    with pytest.raises(InputError, match="other settings"):
        annotate(folder, whole[0], Task(("something else",)), progress=False)


def test_other_weights_at_the_same_path_are_refused(whole, folder, task, monkeypatch):
    monkeypatch.setattr("reasonseg.serving.ray_annotate.identity", lambda model: "sha256:other")
    with pytest.raises(InputError, match="weights sha256:.*, now sha256:other"):
        annotate(folder, whole[0], task, shard=3, progress=False)


def test_a_second_run_on_one_output_is_refused(whole, folder, task):
    with only_run(whole[0]), pytest.raises(InputError, match="another run writes to"):
        annotate(folder, whole[0], task, shard=3, progress=False)


def test_replaced_and_mended_images_are_done_again(whole, cluster, folder, task, tmp_path):
    mine, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(folder, mine)
    for name in "0129":
        (mine / f"{name}.png").unlink()
    annotate(mine, out, task, shard=4, progress=False)
    before = {r["image"]: r for r in rows_of(out)}
    shutil.copyfile(folder / "9.png", mine / "3.png")  # another image under the same name
    shutil.copyfile(folder / "2.png", mine / "broken.jpg")
    counts = annotate(mine, out, task, shard=4, progress=False)
    after = {r["image"]: r for r in rows_of(out)}
    assert counts.get("error", 0) == 0
    changed = {os.path.basename(k) for k in after if after[k] != before[k]}
    assert changed == {"3.png", "broken.jpg"}


def test_killed_three_times_it_ends_the_same(whole, folder, tmp_path):
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "reasonseg.cli",
        "annotate",
        str(folder),
        str(out),
        "--ask",
        "the animal",
        "--ask",
        "everything",
    ]
    command += ["--batch", "4", "--shard", "3", "--device", "cpu"]
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(4, 16))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert rows_of(out) == rows_of(whole[0])


def test_a_bank_instead_of_words(cluster, folder, tmp_path):
    from reasonseg.serving.reference_bank import add

    image = read_image(folder / "0.png")
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[20:80, 20:80] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    add(tmp_path / "bank", folder / "0.png", tmp_path / "m.png", "thing")
    from reasonseg import Segmenter

    if Segmenter.from_pretrained(device="cpu").references is None:
        pytest.skip("the embedded model takes no references")
    counts = annotate(folder, tmp_path / "out", Task(bank=str(tmp_path / "bank")), progress=False)
    assert counts == {"error": 1, "found": 10}
    assert {o["label"] for r in rows_of(tmp_path / "out") for o in r["objects"]} == {"thing"}


def test_inputs(folder, tmp_path):
    import pyarrow as pa

    pq.write_table(
        pa.table({"image": [str(folder / "1.png"), str(folder / "2.png")]}),
        tmp_path / "list.parquet",
    )
    assert [os.path.basename(p) for p in pictures_of(tmp_path / "list.parquet")] == [
        "1.png",
        "2.png",
    ]
    (folder / "coco.json").write_text(
        json.dumps({"images": [{"file_name": "3.png"}]}), encoding="utf-8"
    )
    assert pictures_of(folder / "coco.json") == [str(folder / "3.png")]
    (folder / "coco.json").unlink()
    (tmp_path / "q.txt").write_text("the cup\n\n the tree \n", encoding="utf-8")
    assert questions_in(tmp_path / "q.txt") == ("the cup", "the tree")
    pq.write_table(pa.table({"path": ["x"]}), tmp_path / "other.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("\n", encoding="utf-8")
    for bad, words in (
        (tmp_path / "other.parquet", "no column image"),
        (tmp_path / "empty", "names no pictures"),
        (tmp_path / "x.csv", "is no folder"),
    ):
        with pytest.raises(InputError, match=words):
            pictures_of(bad)
    with pytest.raises(InputError, match="holds no question"):
        questions_in(tmp_path / "none.txt")
    with pytest.raises(InputError, match="nothing is asked"):
        Task()
