"""The command `doctor`: checks the machine and prints what works, what fails and how to fix it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

from reasonseg.cli.options import Command, Parser

EXTRAS = {
    "train": ("tensorboard",),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "gradio"),
    "fleet": ("ray",),
    "quant": ("bitsandbytes",),
    "sam": ("segment_anything",),
}
CORE = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "numpy",
    "pillow",
    "supervision",
)


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "--plan",
        metavar="MODEL",
        help="print the GPU memory that a model needs: lisa-7b, lisa-13b, a model folder or a hub "
        "id (default: check the machine)",
    )


def _doctor(options) -> int:
    from reasonseg.runtime import quiet_libraries

    if options.plan:
        quiet_libraries()
        print_plan(options.plan)
        return 0
    return examine()


def examine() -> int:
    """Prints one line per finding; returns 1 where something required is missing, else 0."""
    failed = False
    print(
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores"
    )
    for name in CORE:
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            optional = name == "torchvision"
            failed |= not optional
            print(
                f"  {name} is missing"
                + (" (only some backbones need it)" if optional else ": pip install reasonseg")
            )
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            print(f"  cuda:{i} {card.name}, {card.total_memory / 2**30:.0f} GiB")
    else:
        print("  no GPU: everything runs on the CPU in float32")
    from importlib.util import find_spec

    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if find_spec(module) is None]
        print(
            f"  extra {extra}: "
            + (f"no {', '.join(absent)} (pip install 'reasonseg[{extra}]')" if absent else "ready")
        )
    from reasonseg.datasets.synthetic.sprites import emoji_font
    from reasonseg.errors import InputError
    from reasonseg.nn.pretrained import EMBEDDED

    try:
        print(f"  emoji font: {emoji_font()}")
    except InputError as error:
        print(f"  emoji font: none ({error})")
    ready = (EMBEDDED / "settings.yaml").is_file()
    failed |= not ready
    print("  model tiny: " + ("ready" if ready else "missing: run recipes/embedded/train.sh"))
    _print_parts()
    free = shutil.disk_usage(Path.home()).free / 2**30
    print(f"  free disk under home: {free:.0f} GiB")
    return int(failed)


def _print_parts() -> None:
    """Prints the pip packages that the model `photo` is made of."""
    from reasonseg.checkpoints.part_packages import INSTALL, PACKAGES, missing
    from reasonseg.errors import InputError

    lacking = missing()
    for package in PACKAGES:
        try:
            said = "not installed" if package in lacking else f"ready ({package.checked().name})"
        except InputError as error:
            said = str(error)
        print(f"  model photo, {package.holds}: {package.requirement} {said}")
    if lacking:
        print(f"  to get them, {INSTALL}")


def print_plan(model: str) -> None:
    """Prints the GPU memory that a model needs, and the smallest common GPU that has it.

    Of models that say places, what each part's weights need. Raises `InputError` where the model
    is not known.
    """
    if model.partition(":")[0] in ("speaker", "endpoint", "agent") or model.endswith(".yaml"):
        _print_spoken_plan(model)
        return
    from rich.console import Console
    from rich.table import Table

    from reasonseg.training.memory import QUESTIONS, card, plan

    table = Table(title=f"{model}: GiB of a GPU")
    for name in ("language model in", "weights", "answer", "LoRA", "all of it"):
        table.add_column(name, justify="left" if name == "language model in" else "right")
    for row in plan(model):
        said = [
            f"{row[k]:.1f} ({card(row[k])})" if row[k] else "" for k in ("answer", "lora", "whole")
        ]
        table.add_row(row["precision"], f"{row['weights']:.1f}", *said)
    console = Console()
    console.print(table)
    console.print(
        f"For one image at a time: one question to answer, {QUESTIONS} questions to train on with "
        "AdamW (mask decoder and prompter are trained too; with train.checkpointing=true and one "
        "micro-batch at a time, train.accumulate). LoRA with int8 or nf4 is QLoRA. The numbers are "
        "computed without a GPU and include 0.6 GiB for CUDA itself; in brackets is the smallest "
        "common card that is large enough. Several GPUs share the last column (shard=true)."
    )


def _print_spoken_plan(model: str) -> None:
    """Prints where each part of a model that says places runs, and the size of its weights."""
    from reasonseg.nn.pretrained import local_folder, model_path
    from reasonseg.segmenters.spoken import settings_from

    settings = settings_from(model)
    for role, speaker in (("speaker", settings.speaker), ("verifier", settings.verifier)):
        if speaker.get("kind") == "endpoint":
            print(f"{role}: {speaker['model']} runs at {speaker['url']} and needs no memory here")
        elif speaker:
            size = _gib(local_folder(speaker["source"]))
            print(f"{role}: {speaker['source']}, {size:.1f} GiB of weights as they are stored")
    size = _gib(model_path(settings.drawer or "photo"))
    print(f"drawer: {settings.drawer or 'the packaged model'}, {size:.1f} GiB of weights here")


def _gib(folder: Path) -> float:
    """The size of the weight files in a folder, in GiB."""
    kinds = (".safetensors", ".bin", ".pt", ".pth")
    return sum(f.stat().st_size for f in folder.rglob("*") if f.suffix in kinds) / 2**30


COMMANDS = (
    Command(
        "doctor",
        "check what works on this machine",
        "Checks the machine, and prints how to fix what fails.",
        _arguments,
        _doctor,
    ),
)
