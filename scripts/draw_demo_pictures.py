"""Draws the pictures of the demo, one a level, from the validation split: draw_demo_pictures.py [--seed N]."""

import argparse
import json

from PIL import Image

from reasonseg.datasets.scenes import SEVEN, Config
from reasonseg.hub import EMBEDDED

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    data = Config("val", len(SEVEN), parser.parse_args().seed, size=448).build()
    folder = EMBEDDED.parent / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    questions = []
    for i in range(len(data)):
        sample = data[i]
        file = f"{sample.level}.png"
        Image.fromarray(sample.query.image).quantize(128).save(folder / file, optimize=True)
        questions.append({"file": file, "level": sample.level, "text": sample.query.text, "truth": sample.truth.text})
    (folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n")
    print(f"wrote {len(questions)} pictures to {folder}")
