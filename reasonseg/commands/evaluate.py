"""`eval`."""

from __future__ import annotations

import sys

from reasonseg.commands.shared import Parser, add_model_options, load_model, positive


def add_eval(commands) -> None:
    """`eval NAME`."""
    parser = commands.add_parser("eval", help="score a model", description="Scores a model on a data set.")
    names = parser.add_subparsers(title="data sets", required=True, metavar="NAME", parser_class=Parser)
    scenes = names.add_parser("scenes", help="drawn scenes, seven levels and novel")
    scenes.add_argument("--levels", metavar="a,b", help="some of the levels")
    scenes.add_argument("--sprites", metavar="DIR", default="", help="a sprite pack instead of the emoji")
    scenes.add_argument("--split", default="test")
    scenes.add_argument(
        "--limit", type=positive, default=2400, metavar="N", help="questions in all (default: %(default)s)"
    )
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--out", metavar="DIR", help="write rows.jsonl and summary.json there; resumes")
    scenes.add_argument("--predictions", metavar="FILE", help="score these instead of a model")
    scenes.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    add_model_options(scenes)
    scenes.set_defaults(run=_eval_scenes)
    for name in ("reasonseg", "refcoco", "refcoco+", "refcocog", "grefcoco"):
        one = names.add_parser(name, help="teacher-forced and generated, with intervals")
        one.add_argument(
            "--root", default="", metavar="DIR", help="LISA's dataset folder, or the one that holds the data set"
        )
        one.add_argument("--split", default="val", help="for RefCOCO also testA, testB (default: %(default)s)")
        if name == "reasonseg":
            one.add_argument("--sentences", choices=["first", "all"], default="first", help="texts of each image")
        one.add_argument("--limit", type=positive, metavar="N", help="only the first samples")
        one.add_argument("--out", metavar="DIR", help="write rows.jsonl and summary.json there; resumes")
        one.add_argument("--predictions", metavar="FILE", help="score these instead of a model")
        one.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
        add_model_options(one)
        one.set_defaults(run=_eval_benchmark, name=name)


def _eval_benchmark(options) -> None:
    from reasonseg.libraries import quiet_libraries

    quiet_libraries()
    import json

    from reasonseg.benchmarks import evaluate_benchmark
    from reasonseg.config import config_class

    if options.name == "reasonseg":
        config = config_class("datasets", "reason")(options.root, options.split, options.sentences)
    else:
        config = config_class("datasets", "refer")(options.root, options.name, options.split)
    summary = evaluate_benchmark(
        None if options.predictions else load_model(options), config, name=options.name, limit=options.limit,
        out=options.out, predictions=options.predictions, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if options.json:
        print(json.dumps(summary))
    else:
        from reasonseg.tables import print_benchmark

        print_benchmark(options.name, summary)


def _eval_scenes(options) -> None:
    from reasonseg.libraries import quiet_libraries

    quiet_libraries()
    import json

    from reasonseg.evaluate import SEVEN, evaluate_scenes

    levels = tuple(options.levels.split(",")) if options.levels else (*SEVEN, "novel")
    segmenter = None if options.predictions else load_model(options)
    summary = evaluate_scenes(
        segmenter, split=options.split, limit=options.limit, seed=options.seed, levels=levels, sprites=options.sprites,
        out=options.out, predictions=options.predictions, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if options.json:
        print(json.dumps(summary))
    else:
        from reasonseg.tables import print_scenes

        print_scenes(summary)


COMMANDS = (add_eval,)
