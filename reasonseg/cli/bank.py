"""The command `bank`."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser, verbs_of


def _arguments(parser: Parser) -> None:
    verbs = verbs_of(parser)
    one = verbs.add_parser("add", help="copy an image and its mask into a bank")
    one.add_argument("folder", metavar="DIR", help="the bank; made if it does not exist")
    one.add_argument("image", metavar="IMAGE", help="the image file")
    one.add_argument(
        "mask",
        metavar="MASK",
        help="the mask file, in the size of the image; pixels that are not black are the object",
    )
    one.add_argument(
        "--label", default="thing", metavar="L", help="the label (default: %(default)s)"
    )
    one.set_defaults(run=_add)
    one = verbs.add_parser("list", help="print the ids of the references")
    one.add_argument("folder", metavar="DIR", help="the bank, or any folder that finetune reads")
    one.set_defaults(run=_list)
    one = verbs.add_parser("remove", help="remove a reference")
    one.add_argument("folder", metavar="DIR", help="the bank")
    one.add_argument("id", metavar="ID", help="the id, as printed by `bank list`")
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
        "manage a reference bank",
        "Manages a reference bank, annotated images to select references from.",
        _arguments,
    ),
)
