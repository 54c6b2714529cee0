"""The command `annotate`."""

from __future__ import annotations

import os
import sys

from reasonseg.cli.options import (
    Command,
    Parser,
    add_bank_options,
    add_model_options,
    model_keywords,
    positive,
)
from reasonseg.errors import InputError


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "input", metavar="INPUT", help="a folder, a .parquet with a column image, or a COCO .json"
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="the folder for parquet files and annotations.json; a stopped run resumes",
    )
    parser.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar="TEXT",
        help="a question about every image; may be repeated (default: none)",
    )
    parser.add_argument(
        "--queries", metavar="FILE", help="a file of questions, one per line (default: none)"
    )
    add_bank_options(parser)
    _add_pool_options(parser)
    add_model_options(parser)


def _add_pool_options(parser: Parser) -> None:
    """Adds the options of the pool of models."""
    parser.add_argument(
        "--address", metavar="A", help="address of a Ray cluster, or auto (default: this machine)"
    )
    parser.add_argument(
        "--models",
        type=positive,
        metavar="N",
        help="models that work in parallel (default: one per GPU, or one per two CPU cores)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="images per batch (default: %(default)s)",
    )
    parser.add_argument(
        "--shard",
        type=positive,
        default=64,
        metavar="N",
        help="images per shard, the unit of work (default: %(default)s)",
    )


def _annotate(options) -> None:
    try:
        from reasonseg.serving.ray_annotate import Task, annotate, questions_in
    except ImportError as error:
        raise InputError(f"annotate needs {error.name}: pip install 'reasonseg[fleet]'") from None
    questions = (*options.ask, *(questions_in(options.queries) if options.queries else ()))
    bank = os.path.abspath(options.bank) if options.bank else ""
    model = model_keywords(options)
    for name in ("source", "clip", "sam"):  # the pool has other working directories
        if model.get(name) and os.path.exists(model[name]):
            model[name] = os.path.abspath(model[name])
    task = Task(questions, bank, options.shots, options.by, model, options.batch)
    counts = annotate(
        options.input,
        options.output,
        task,
        address=options.address,
        models=options.models,
        shard=options.shard,
        progress=sys.stderr.isatty(),
    )
    print(
        ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        + f"; wrote {options.output}"
    )


COMMANDS = (
    Command(
        "annotate",
        "write masks of many images, on one machine or many",
        "Annotates images on Ray.",
        _arguments,
        _annotate,
    ),
)
