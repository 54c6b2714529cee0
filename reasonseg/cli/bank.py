"""`bank`."""

from __future__ import annotations

from reasonseg.cli.options import Parser


def add_bank(commands) -> None:
    """`bank add|list|remove`."""
    parser = commands.add_parser(
        "bank", help="annotated images to choose examples from", description="Keeps a reference bank."
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=Parser)
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


COMMANDS = (add_bank,)
