"""`import`, `merge`, `show` and `doctor`."""

from __future__ import annotations

from reasonseg.cli.options import Parser, add_model_options, load_model


def add_import(commands) -> None:
    """`import SRC DST`."""
    parser = commands.add_parser(
        "import", help="released LISA or LLaVA weights into a model folder",
        description="Reads a released checkpoint (LISA v1; LLaVA v1 with --sam) and writes a folder for --model.",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="folder, hub id, or the weight file of a training checkpoint")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("--verify", action="store_true", help="run the original segment-anything beside it and compare")
    parser.add_argument("--clip", metavar="DIR", help="vision tower, where it does not lie beside the weights")
    parser.add_argument("--sam", metavar="FILE", help="mask decoder to use instead: .pth, folder or hub id")
    parser.add_argument("--template", help="conversation strings: llava_v1, vicuna_v1, llava_llama_2")
    parser.add_argument("--read", choices=["predicting", "at"], help="which state of <SEG> prompts the decoder")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="stored precision (default: as it is)"
    )
    parser.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="weights that need not fit")
    parser.add_argument("--revision", help="of a hub model")
    parser.set_defaults(run=_import)


def _import(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg.checkpoints.folder import DTYPES
    from reasonseg.checkpoints.released.verify import differences, read_to_import

    layout, segmenter = read_to_import(
        options.source, revision=options.revision, dtype=DTYPES.get(options.dtype), clip=options.clip,
        sam_from=options.sam, template=options.template, at=options.read, allow=tuple(options.allow),
    )  # fmt: skip
    segmenter.save_pretrained(options.target)
    count = sum(p.numel() for p in segmenter.parameters()) / 1e6
    print(f"{count:.1f} M parameters written to {options.target}")
    if options.verify:
        found = differences(segmenter, layout, options.sam)
        print("largest difference to segment-anything: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))


def add_merge(commands) -> None:
    """`merge SRC DST`."""
    parser = commands.add_parser(
        "merge", help="a fine-tuned model's changes and the model below them, as one folder",
        description="Folds the changes that finetune wrote (train.save=changes, or --quantization) into a whole model.",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="folder with changes.yaml")
    parser.add_argument("target", metavar="DST")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="stored precision (default: float32)"
    )
    parser.set_defaults(run=_merge)


def _merge(options) -> None:
    from pathlib import Path

    from reasonseg.errors import InputError
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg import Segmenter
    from reasonseg.checkpoints.delta import FILE

    if not (Path(options.source) / FILE).is_file():
        raise InputError(
            f"{options.source} holds no {FILE}: it is no folder of changes, and whole already if it is a model"
        )
    Segmenter.from_pretrained(options.source, device="cpu", dtype=options.dtype).save_pretrained(options.target)
    print(f"wrote {options.target}")


def add_show(commands) -> None:
    """`show config` and `show model`."""
    parser = commands.add_parser(
        "show", help="print a config or a model", description="What a config or a model says, in full."
    )
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT", parser_class=Parser)
    config = what.add_parser("config", help="the resolved settings of a config")
    config.add_argument("config", metavar="CONFIG")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.set_defaults(run=_show_config)
    model = what.add_parser("model", help="parts and sizes of a model")
    add_model_options(model)
    model.set_defaults(run=_show_model)


def _show_config(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    import yaml

    from reasonseg.config.schema import dump
    from reasonseg.config.training import read_run

    settings = read_run(options.config, options.overrides)
    print(yaml.safe_dump(dump(settings), sort_keys=False, allow_unicode=True), end="")


def _show_model(options) -> None:
    from reasonseg.evaluation.tables import print_model

    print_model(load_model(options, notice=False))


def add_doctor(commands) -> None:
    """`doctor`."""
    parser = commands.add_parser(
        "doctor", help="what works on this machine", description="Checks the machine; names the remedy."
    )
    parser.add_argument(
        "--plan", metavar="MODEL", help="what a model takes of a GPU: lisa-7b, lisa-13b, a model folder or a hub id"
    )
    parser.set_defaults(run=_doctor)


def _doctor(options) -> int:
    from reasonseg.runtime import quiet_libraries

    if options.plan:
        quiet_libraries()
        from reasonseg.evaluation.tables import print_plan

        print_plan(options.plan)
        return 0
    from reasonseg.cli.doctor import examine

    return examine()


COMMANDS = (add_import, add_merge, add_show, add_doctor)
