"""Copies of an image never stand on both sides of a split."""

import io
import shutil

import numpy as np
from PIL import Image
from small_data import pairs

from reasonseg.datasets.folder import Config
from reasonseg.structures.duplicates import copies


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed, size=(160, 120)):
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_copies_are_found(tmp_path):
    one, other = photo(0), photo(1)
    spot = one.copy()
    spot.paste((255, 255, 255), (40, 40, 60, 60))
    files = [
        saved(one),
        saved(other),
        saved(one, "JPEG", quality=80),
        saved(one.resize((320, 240), Image.Resampling.LANCZOS)),
        saved(spot),  # another thing in the same place is another image
        saved(one.resize((160, 100))),  # and so is another shape
        b"no image",
    ]
    assert copies(files) == [0, 1, 0, 0, 4, 5, 6]
    (tmp_path / "a.png").write_bytes(files[0])
    assert copies([tmp_path / "a.png", files[2], tmp_path / "nowhere.png"]) == [0, 0, 2]


def test_a_copy_under_another_name_stays_on_its_side(tmp_path):
    root = pairs(tmp_path, 8)
    for k in range(8):  # each image twice, once as a JPEG
        Image.open(root / "images" / f"{k:03d}.png").convert("RGB").save(
            root / "images" / f"copy{k}.jpg", quality=85
        )
        for label in ("bar", "disc"):
            folder = root / "masks" / label
            shutil.copyfile(folder / f"{k:03d}.png", folder / f"copy{k}.png")
    for seed in range(4):
        sides = []
        for split in ("train", "validation"):
            data = Config(str(root), split, share=0.25, seed=seed).build()
            names = {e.picture.stem for e in data.entries}
            sides.append({int(name.removeprefix("copy")) for name in names})
        assert len(sides[1]) == 2 and not sides[0] & sides[1]
    assert any("8 of 16 images are copies" in remark.text for remark in data.remarks)
