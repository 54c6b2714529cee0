"""`bank`."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser, verbs_of


def _arguments(parser: Parser) -> None:
    verbs = verbs_of(parser)
    one = verbs.add_parser("add", help="copy an image and its mask into a bank")
    one.add_argument("folder", metavar="DIR")
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("mask", metavar="MASK", help="of its size; anything not black is the thing")
    one.add_argument("--label", default="thing", metavar="L")
    one.set_defaults(run=_add)
    one = verbs.add_parser("list", help="ids of its references")
    one.add_argument("folder", metavar="DIR", help="a bank, or any folder that finetune reads")
    one.set_defaults(run=_list)
    one = verbs.add_parser("remove", help="take a reference out")
    one.add_argument("folder", metavar="DIR")
    one.add_argument("id", metavar="ID", help="as `bank list` shows it")
    one.set_defaults(run=_remove)


def _add(options) -> None:
    from reasonseg.serving.reference_bank import add

    print(f"added {add(options.folder, options.image, options.mask, options.label)}")


def _list(options) -> None:
    from reasonseg.serving.reference_bank import Bank

    bank = Bank(options.folder)
    for i in range(len(bank)):
        print(bank.id(i))
    print(f"{len(bank)} references, {len(bank.labels)} labels")


def _remove(options) -> None:
    from reasonseg.serving.reference_bank import remove

    remove(options.folder, options.id)
    print(f"removed {options.id}")


COMMANDS = (
    Command(
        "bank",
        "keep annotated images to choose examples from",
        "Keeps a reference bank.",
        _arguments,
    ),
)
