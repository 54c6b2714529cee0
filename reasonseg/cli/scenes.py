"""The command `scenes`."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser, positive, verbs_of


def _arguments(parser: Parser) -> None:
    verbs = verbs_of(parser)
    draw = verbs.add_parser(
        "draw", help="draw a contact sheet of scenes with questions and true masks"
    )
    draw.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write to (required)"
    )
    draw.add_argument("--split", default="val", help="train, val or test (default: %(default)s)")
    draw.add_argument(
        "--count", type=positive, default=12, help="number of scenes (default: %(default)s)"
    )
    draw.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    draw.add_argument(
        "--levels", metavar="a,b", help="levels of questions (default: the seven levels)"
    )
    draw.add_argument(
        "--sprites", metavar="DIR", default="", help="folder of a sprite pack (default: the emoji)"
    )
    draw.set_defaults(run=_scenes_draw)
    sprites = verbs.add_parser("sprites", help="render the emoji pack into a folder")
    sprites.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write to (required)"
    )
    sprites.set_defaults(run=_scenes_sprites)


def _scenes_draw(options) -> None:
    from reasonseg.datasets.scenes import SEVEN, Config
    from reasonseg.structures.contact_sheet import save_sheet

    levels = tuple(options.levels.split(",")) if options.levels else SEVEN
    data = Config(
        options.split, options.count, options.seed, levels=levels, sprites=options.sprites
    ).build()
    path = save_sheet([data[i] for i in range(len(data))], options.out)
    print(f"wrote {path}, {options.count} images with masks and samples.jsonl")


def _scenes_sprites(options) -> None:
    from pathlib import Path

    from reasonseg.datasets.synthetic.sprites import render_pack

    print(f"wrote {render_pack(Path(options.out))} sprites and index.json to {options.out}")


COMMANDS = (
    Command(
        "scenes",
        "draw synthetic scenes or render sprites",
        "Draws synthetic scenes with exact masks.",
        _arguments,
    ),
)
