"""`annotate`."""

from __future__ import annotations

import os
import sys

from reasonseg.cli.options import Command, Parser, add_model_options, model_keywords, positive
from reasonseg.errors import InputError


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "input", metavar="INPUT", help="a folder, a .parquet with a column image, or a COCO .json"
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="parquet files and annotations.json are written there; resumes",
    )
    parser.add_argument(
        "--ask", action="append", default=[], metavar="TEXT", help="asked about every picture"
    )
    parser.add_argument("--queries", metavar="FILE", help="questions, one a line")
    parser.add_argument(
        "--bank", metavar="DIR", default="", help="annotated images to choose examples from"
    )
    parser.add_argument(
        "--shots", type=positive, default=1, metavar="K", help="examples to choose (default: 1)"
    )
    parser.add_argument("--by", choices=["pixel", "global", "thing"], default="pixel")
    parser.add_argument(
        "--address", metavar="A", help="of a Ray cluster, or auto (default: this machine)"
    )
    parser.add_argument(
        "--models",
        type=positive,
        metavar="N",
        help="at work at a time (default: one a GPU, or one for two cores)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="pictures that go through together (default: 16)",
    )
    parser.add_argument(
        "--shard",
        type=positive,
        default=64,
        metavar="N",
        help="pictures of one unit of work (default: 64)",
    )
    add_model_options(parser)


def _annotate(options) -> None:
    try:
        from reasonseg.serving.ray_annotate import Task, annotate, questions_in
    except ImportError as error:
        raise InputError(f"annotate needs {error.name}: pip install 'reasonseg[fleet]'") from None
    questions = (*options.ask, *(questions_in(options.queries) if options.queries else ()))
    bank = os.path.abspath(options.bank) if options.bank else ""
    model = model_keywords(options)
    for name in ("source", "clip", "sam"):  # the pool has folders of its own
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
