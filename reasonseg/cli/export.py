"""The command `export`."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "source", metavar="SRC", help="a folder written by ask --out or by annotate"
    )
    parser.add_argument("out", metavar="DST", help="the folder to write to")
    parser.add_argument(
        "--format",
        choices=["coco", "labelme", "yolo", "png", "labelstudio"],
        required=True,
        help="the format to write (required)",
    )


def _export(options) -> None:
    from reasonseg.structures.export import export, records

    written = export(records(options.source), options.out, options.format)
    print(f"wrote {options.out}: {written}")


COMMANDS = (
    Command(
        "export",
        "convert answers to COCO, LabelMe, YOLO ...",
        "Writes masks in another format.",
        _arguments,
        _export,
    ),
)
