"""LISA's claim on a small scale: 239 reasoning samples, for a model without such questions before.

    python -m scripts.reasoning

It trains `recipes/embedded/configs/plain.yaml` (no question about functions; a killed run resumes),
writes 239 questions about functions as a folder, runs `reasonseg finetune` on it, and evaluates the
test split before and after. Paper: gIoU 44.4 -> 52.9.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, set_seed

from reasonseg import Segmenter
from reasonseg.config.schema import override, parse
from reasonseg.config.training import read_run
from reasonseg.datasets.scenes import Config
from reasonseg.errors import InputError
from reasonseg.evaluation.scenes import evaluate_scenes
from reasonseg.structures.masks import to_rle
from reasonseg.structures.sample import Sample
from reasonseg.training.finetune import finetune
from reasonseg.training.prepare import FinetuneSettings
from reasonseg.training.run import train

SAMPLES = 239  # as LISA's training split of ReasonSeg
LEVELS = ("function", "novel", "name")


def without_words(seed: int = 0) -> Segmenter:
    """The embedded model with fresh weights in language model, projector and prompter."""
    set_seed(seed)
    model = Segmenter.from_pretrained(dtype=torch.float32)
    backbone, tower = model.backbone, model.backbone.tower.state_dict()
    backbone.model = LlavaForConditionalGeneration(backbone.model.config)
    backbone.tower.load_state_dict(tower)
    model.prompter = model.settings.prompter.config.build()
    return model


def function_samples(count: int) -> Iterator[Sample]:
    """Questions about functions from the training split, one per scene.

    Scenes that allow no such question are skipped.
    """
    data = Config("train", 10 * count, 239, size=252, levels=("function",)).build()
    found = 0
    for i in range(len(data)):
        try:
            yield data[i]
        except InputError:
            continue
        found += 1
        if found == count:
            return


def write_samples(folder: Path, count: int) -> None:
    """Writes the questions as `samples.jsonl` and images."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, sample in enumerate(function_samples(count)):
        Image.fromarray(sample.query.image).save(folder / f"{i:03}.png")
        masks = [to_rle(mask) for mask in sample.truth.masks]
        lines.append(
            {
                "image": f"{i:03}.png",
                "text": sample.query.text,
                "answer": sample.truth.text,
                "masks": masks,
            }
        )
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )


def scored(source: Path, out: Path, limit: int) -> dict:
    """The scores of `reasonseg eval scenes` for a model, on the test split."""
    model = Segmenter.from_pretrained(source, dtype=torch.float32)
    return evaluate_scenes(model, limit=limit, levels=LEVELS, out=out)["levels"]


def main() -> None:
    """Runs what is not finished yet and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/reasoning"))
    parser.add_argument(
        "--limit", type=int, default=1200, help="test questions in all, over the levels"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of finetune, such as train.lr=1e-3"
    )
    options = parser.parse_args()
    start, plain, folder = options.out / "start", options.out / "plain", options.out / "samples"
    if not (start / "settings.yaml").is_file():
        without_words().save_pretrained(start)
    train(read_run("recipes/embedded/configs/plain.yaml", [f"start={start}", f"out={plain}"]))
    if not (folder / "samples.jsonl").is_file():
        write_samples(folder, SAMPLES)
    how = [
        "train.lora=0",
        "train.max_steps=240",
        "train.batch=16",
        "train.lr=1e-3",
        "data.absent=0",
        "data.share=0.02",
    ]
    settings = parse(FinetuneSettings, override({}, [*how, *options.overrides]))
    finetune(
        Segmenter.from_pretrained(plain / "model", dtype=torch.float32),
        str(folder),
        options.out / "tuned",
        settings,
    )
    before, after = (
        scored(p / "model", options.out / f"eval_{p.name}", options.limit)
        for p in (plain, options.out / "tuned")
    )
    print("| questions | no training on functions | after 239 samples |\n|---|---|---|")
    for level in LEVELS:
        cells = [
            f"{v['giou']:.3f} ({v['ci95'][0]:.3f} to {v['ci95'][1]:.3f})"
            for v in (before[level], after[level])
        ]
        print(f"| {level} (n = {before[level]['n']}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
