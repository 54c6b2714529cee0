"""`train` and `finetune`."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser, add_model_options, load_model


def _train_arguments(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


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
        "folder", metavar="FOLDER", help="COCO, LabelMe, images/ and masks/, or samples.jsonl"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.max_steps=500"
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--skip-bad", action="store_true", help="go on without the samples that cannot be used"
    )
    add_model_options(parser)


def _finetune(options) -> None:
    from reasonseg.config.schema import override, parse
    from reasonseg.training.finetune import FinetuneSettings, finetune

    settings = parse(FinetuneSettings, override({}, options.overrides))
    segmenter = load_model(options)
    segmenter.capabilities.require("finetune", "words")
    summary = finetune(segmenter, options.folder, options.out, settings, options.skip_bad)
    for way in ("teacher_forced", "generated"):
        before, after = (summary[when][way] for when in ("before", "after"))
        print(
            f"{way.replace('_', '-')} gIoU {before['giou']:.3f} -> {after['giou']:.3f} on "
            f"{after['n']} validation samples"
        )
    print(f"wrote {options.out}/model; pictures in {options.out}/understood, before and after")


COMMANDS = (
    Command(
        "train",
        "run the stages of a config",
        "Trains, or resumes a run that was stopped.",
        _train_arguments,
        _train,
    ),
    Command(
        "finetune",
        "train a model on your own images",
        "Reads a folder of images and masks, shows what it understood, trains, and scores before "
        "and after.",
        _finetune_arguments,
        _finetune,
        epilog="With --quantization nf4 adapters are trained beside 4-bit weights (QLoRA), and "
        "DIR/model holds what changed.",
    ),
)
