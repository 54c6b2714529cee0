"""The commands `train` and `finetune`."""

from __future__ import annotations

import sys
from dataclasses import replace

from reasonseg.cli.options import (
    Command,
    Parser,
    add_config_arguments,
    add_model_options,
    add_overrides,
    folder_to_write,
    load_model,
    positive,
)
from reasonseg.errors import InputError


def _train_arguments(parser: Parser) -> None:
    add_config_arguments(parser)


def _train(options) -> None:
    from reasonseg.config.training import read_run
    from reasonseg.runtime import quiet_libraries

    settings = read_run(options.config, options.overrides)
    quiet_libraries()
    from reasonseg.training.run import train

    train(settings)
    print(f"wrote {settings.out}/model")


def _finetune_arguments(parser: Parser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder in the layout of COCO or LabelMe, with images/ and masks/, or with "
        "samples.jsonl",
    )
    add_overrides(parser, "train.max_steps=500")
    parser.add_argument(
        "--out",
        type=folder_to_write,
        required=True,
        metavar="DIR",
        help="the folder to write to (required)",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="train without the samples that cannot be used (default: stop with an error)",
    )
    parser.add_argument(
        "--more-steps",
        type=positive,
        metavar="N",
        help="train the finished run of --out N steps further, into DIR/further-1 (default: no)",
    )
    add_model_options(parser)


def _finetune(options) -> None:
    from reasonseg.config.schema import override, parse
    from reasonseg.evaluation.dataset_report import listed
    from reasonseg.training.prepare import FinetuneSettings, prepare

    settings = parse(FinetuneSettings, override({}, options.overrides))
    prepared = prepare(options.folder, options.out, settings, options.skip_bad)
    from reasonseg.training.finetune import finetune, further

    if options.more_steps:
        if options.model is not None:
            raise InputError("--more-steps trains the model of --out; leave --model out")
        options.model, options.out = map(str, further(options.out))
        steps = replace(settings.train, max_steps=options.more_steps)
        settings = replace(settings, train=steps)
    segmenter = load_model(options)
    segmenter.capabilities.require("finetune", "words")
    summary = finetune(segmenter, options.folder, options.out, settings, prepared=prepared)
    for line in listed("note: ", summary.get("remarks", [])):
        print(line, file=sys.stderr)
    for way in ("teacher_forced", "generated"):
        before, after = (summary[when][way] for when in ("before", "after"))
        print(
            f"{way.replace('_', '-')} gIoU {before['giou']:.3f} -> {after['giou']:.3f} on "
            f"{after['n']} validation samples"
        )
    print(f"wrote {options.out}/model; images in {options.out}/understood, before and after")


COMMANDS = (
    Command(
        "train",
        "run the stages of a config",
        "Trains a model, or resumes a run that was stopped.",
        _train_arguments,
        _train,
    ),
    Command(
        "finetune",
        "train a model on your own images",
        "Reads a folder of images and masks, draws some of its samples, trains, and scores the "
        "model before and after.",
        _finetune_arguments,
        _finetune,
        epilog="With --quantization nf4, adapters are trained on 4-bit weights (QLoRA), and "
        "DIR/model holds only the changes.",
    ),
)
