"""`eval`."""

from __future__ import annotations

import sys

from reasonseg.cli.options import Parser, add_model_options, load_model, positive
from reasonseg.runtime import is_main_process

BENCHMARKS = ("reasonseg", "refcoco", "refcoco+", "refcocog", "grefcoco", "folder")
SPLITS = {
    "reasonseg": ["train", "val", "test"], "refcoco": ["train", "val", "testA", "testB"],
    "refcocog": ["train", "val", "test"], "folder": ["all"], "refclef": ["train", "val", "test"],
}  # fmt: skip
WHOLE = {  # training data without splits: the room's kind, and the name it goes by there
    "ade20k": "semantic", "cocostuff": "semantic", "mapillary": "semantic", "paco_lvis": "parts", "pascal_part": "parts",
    "vqa": "vqa",
}  # fmt: skip


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
    for name in BENCHMARKS:
        one = names.add_parser(name, help="teacher-forced and generated, with intervals")
        one.add_argument(
            "--root", default="", metavar="DIR", help="LISA's dataset folder, or the one that holds the data set"
        )
        split = "all" if name == "folder" else "val"
        one.add_argument("--split", default=split, help="for RefCOCO also testA, testB (default: %(default)s)")
        if name == "reasonseg":
            one.add_argument("--sentences", choices=["first", "all"], default="first", help="texts of each image")
        one.add_argument("--limit", type=positive, metavar="N", help="only the first samples")
        one.add_argument("--seed", type=int, default=0, help="of the intervals")
        one.add_argument("--out", metavar="DIR", help="write rows.jsonl and summary.json there; resumes")
        one.add_argument("--predictions", metavar="FILE", help="score these instead of a model")
        one.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
        add_model_options(one)
        one.set_defaults(run=_eval_benchmark, name=name)

    _add_episodes(names)


def _add_episodes(names) -> None:
    one = names.add_parser("episodes", help="few-shot: a thing shown in other pictures; mIoU and FB-IoU")
    one.add_argument("--benchmark", choices=["scenes", "pascal", "coco", "fss"], default="scenes")
    one.add_argument("--root", default="", metavar="DIR", help="where the pictures of pascal, coco or fss lie")
    one.add_argument("--fold", type=int, default=0, metavar="F", help="0 to 3")
    one.add_argument("--shots", type=positive, default=1, metavar="K", help="references of an episode (default: 1)")
    one.add_argument(
        "--prompt", choices=["reference", "label", "both"], default="reference", help="what an episode gives"
    )
    one.add_argument("--sprites", metavar="DIR", default="", help="a sprite pack instead of the emoji, all withheld")
    one.add_argument("--limit", type=positive, default=1000, metavar="N", help="episodes a group (default: 1000)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", metavar="DIR", help="write rows.jsonl and summary.json there; resumes")
    one.add_argument("--predictions", metavar="FILE", help="score these instead of a model")
    one.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    add_model_options(one)
    one.set_defaults(run=_eval_episodes)


def _eval_episodes(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    import json

    from reasonseg.datasets.episodes import Config
    from reasonseg.evaluation.few_shot import evaluate_episodes

    config = Config(
        options.root, options.benchmark, options.fold, options.shots, options.prompt, count=options.limit,
        seed=options.seed, sprites=options.sprites,
    )  # fmt: skip
    summary = evaluate_episodes(
        None if options.predictions else load_model(options), config, out=options.out, predictions=options.predictions,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    if not is_main_process():
        return
    if options.json:
        print(json.dumps(summary))
    else:
        from reasonseg.evaluation.tables import print_episodes

        print_episodes(options.benchmark, summary)


def data_of(name: str, root: str, split: str, sentences: str = "first"):
    """The configuration of a data set by the name it has on the command line."""
    from reasonseg.config.kinds import config_class

    if name == "reasonseg":
        return config_class("datasets", "reason")(root, split, sentences)
    if name == "folder":
        return config_class("datasets", "folder")(root, split)
    if name in WHOLE:
        return config_class("datasets", WHOLE[name])(root, **({} if name == "vqa" else {"name": name}))
    return config_class("datasets", "refer")(root, name, split)


def _eval_benchmark(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    import json

    from reasonseg.evaluation.benchmarks import evaluate_benchmark

    config = data_of(options.name, options.root, options.split, getattr(options, "sentences", "first"))
    summary = evaluate_benchmark(
        None if options.predictions else load_model(options), config, name=options.name, limit=options.limit, seed=options.seed,
        out=options.out, predictions=options.predictions, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if not is_main_process():
        return
    if options.json:
        print(json.dumps(summary))
    else:
        from reasonseg.evaluation.tables import print_benchmark

        print_benchmark(options.name, summary)


def _eval_scenes(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    import json

    from reasonseg.evaluation.scenes import SEVEN, evaluate_scenes

    levels = tuple(options.levels.split(",")) if options.levels else (*SEVEN, "novel")
    segmenter = None if options.predictions else load_model(options)
    summary = evaluate_scenes(
        segmenter, split=options.split, limit=options.limit, seed=options.seed, levels=levels, sprites=options.sprites,
        out=options.out, predictions=options.predictions, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if not is_main_process():
        return
    if options.json:
        print(json.dumps(summary))
    else:
        from reasonseg.evaluation.tables import print_scenes

        print_scenes(summary)


def add_data(commands) -> None:
    """`data check NAME --root DIR`."""
    parser = commands.add_parser("data", help="look at a data set", description="Says what a data set holds and lacks.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=Parser)
    check = verbs.add_parser("check", help="read every sample, name what is broken, draw a few")
    known = (*BENCHMARKS, "refclef", *WHOLE)
    check.add_argument("name", choices=known, metavar="NAME", help=", ".join(known))
    check.add_argument("--root", required=True, metavar="DIR")
    check.add_argument("--split", help="(default: every split there is)")
    check.add_argument(
        "--out", metavar="DIR", default="out/data", help="where samples are drawn (default: %(default)s)"
    )
    check.set_defaults(run=_data_check)


def _data_check(options) -> int:
    from reasonseg.evaluation.dataset_report import inspect

    splits = [options.split] if options.split else SPLITS.get(options.name, SPLITS["refcoco"])
    splits = ["train"] if options.name in WHOLE else splits
    configs = {split: data_of(options.name, options.root, split, "all") for split in splits}
    found = inspect(configs, options.out, progress=sys.stderr.isatty())
    for line in found.lines():
        print(line)
    print(f"pictures in {options.out}")
    return 1 if found.problems else 0


COMMANDS = (add_eval, add_data)
