"""`export`."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="the folder of ask --out, or of annotate")
    parser.add_argument("out", metavar="DST")
    parser.add_argument(
        "--format", choices=["coco", "labelme", "yolo", "png", "labelstudio"], required=True
    )


def _export(options) -> None:
    from reasonseg.structures.export import export, records

    export(records(options.source), options.out, options.format)
    print(f"wrote {options.out}")


COMMANDS = (
    Command(
        "export",
        "convert answers to COCO, LabelMe, YOLO ...",
        "Writes masks in another format.",
        _arguments,
        _export,
    ),
)
