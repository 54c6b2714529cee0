"""The commands `import` and `merge`: write models of other formats as a model folder."""

from __future__ import annotations

from reasonseg.cli.options import DTYPES, Command, Parser, add_checkpoint_options


def _import_arguments(parser: Parser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a folder, a hub id, or the weight file of a training checkpoint",
    )
    parser.add_argument("target", metavar="DST", help="the model folder to write")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with the original segment-anything (default: off)",
    )
    add_checkpoint_options(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the written weights (default: unchanged)",
    )


def _import(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg.checkpoints.folder import STORED, load, save
    from reasonseg.checkpoints.released.verify import differences

    parts = load(
        options.source,
        device="cpu",
        dtype=options.dtype or STORED,
        clip=options.clip,
        sam=options.sam,
        template=options.template,
        read=options.read,
        allow=tuple(options.allow),
        revision=options.revision,
    )
    save(parts, options.target)
    count = sum(p.numel() for p in parts.parameters()) / 1e6
    print(f"{count:.1f} M parameters written to {options.target}")
    if options.verify:
        found = differences(parts, options.source, options.sam)
        print(
            "largest difference to segment-anything: "
            + ", ".join(f"{k} {v:.1e}" for k, v in found.items())
        )


def _merge_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="a folder with changes.yaml")
    parser.add_argument("target", metavar="DST", help="the model folder to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the written weights (default: float32)",
    )


def _merge(options) -> None:
    from pathlib import Path

    from reasonseg.errors import InputError
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg import Segmenter
    from reasonseg.checkpoints.delta import FILE

    if not (Path(options.source) / FILE).is_file():
        raise InputError(
            f"{options.source} holds no {FILE}: it is no folder of changes; a whole model needs no "
            "merge"
        )
    Segmenter.from_pretrained(options.source, device="cpu", dtype=options.dtype).save_pretrained(
        options.target
    )
    print(f"wrote {options.target}")


COMMANDS = (
    Command(
        "import",
        "convert released weights into a model folder",
        "Reads every format that --model reads (LISA v1, LLaVA v1 with --sam, VLP-SAM, SegGPT ...) "
        "and writes a model folder for --model.",
        _import_arguments,
        _import,
    ),
    Command(
        "merge",
        "write a fine-tuned model's changes and their base as one folder",
        "Merges the changes that finetune wrote (train.save=changes, or --quantization) into a "
        "whole model.",
        _merge_arguments,
        _merge,
    ),
)
