"""`train` and `finetune`."""

from __future__ import annotations

from reasonseg.cli.options import add_model_options, load_model


def add_train(commands) -> None:
    """`train CONFIG [key=value ...]`."""
    parser = commands.add_parser(
        "train", help="run the stages of a config", description="Trains, or goes on where a run stopped."
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.set_defaults(run=_train)


def _train(options) -> None:
    from reasonseg.config.training import read_run
    from reasonseg.runtime import quiet_libraries

    settings = read_run(options.config, options.overrides)
    quiet_libraries()
    from reasonseg.training.run import train

    train(settings)
    print(f"wrote {settings.out}/model")


def add_finetune(commands) -> None:
    """`finetune FOLDER --out DIR [key=value ...]`."""
    parser = commands.add_parser(
        "finetune", help="teach a model your own images",
        description="Reads a folder of images and masks, shows what it understood, trains, and scores before and after.",
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="COCO, LabelMe, images/ and masks/, or samples.jsonl")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.max_steps=500")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--skip-bad", action="store_true", help="go on without the samples that cannot be used")
    add_model_options(parser)
    parser.epilog = (
        "With --quantization nf4 adapters are trained beside 4-bit weights (QLoRA), and DIR/model holds what changed."
    )
    parser.set_defaults(run=_finetune)


def _finetune(options) -> None:
    from reasonseg.config.schema import override, parse
    from reasonseg.training.finetune import FinetuneSettings, finetune

    settings = parse(FinetuneSettings, override({}, options.overrides))
    summary = finetune(load_model(options), options.folder, options.out, settings, options.skip_bad)
    for way in ("teacher_forced", "generated"):
        before, after = (summary[when][way] for when in ("before", "after"))
        print(
            f"{way.replace('_', '-')} gIoU {before['giou']:.3f} -> {after['giou']:.3f} on {after['n']} validation samples"
        )
    print(f"wrote {options.out}/model; pictures in {options.out}/understood, before and after")


COMMANDS = (add_train, add_finetune)
