"""The command `eval`: scores a model on a data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from reasonseg.cli.options import (
    Command,
    Parser,
    add_model_options,
    add_overrides,
    load_model,
    positive,
    refuse_fall_back,
    seed,
    verbs_of,
)
from reasonseg.datasets.base import named_sets
from reasonseg.errors import InputError
from reasonseg.runtime import is_main_process

SPLITS = {"folder": "all"}  # the default split of --split, where it is not val


def _arguments(parser: Parser) -> None:
    names = verbs_of(parser, "data sets", "NAME")
    _scenes_arguments(
        names.add_parser(
            "scenes", help="drawn scenes: seven levels of questions, and unseen wordings"
        )
    )
    _episodes_arguments(
        names.add_parser(
            "episodes", help="few-shot segmentation with reference images: mIoU and FB-IoU"
        )
    )
    _photos_arguments(
        names.add_parser(
            "photos", help="annotated photographs: words, boxes, clicks and one example"
        )
    )
    for name, found in named_sets(parser.asked[:1]).items():
        if found.name.evaluated:
            one = names.add_parser(
                name, help="gIoU and cIoU, teacher-forced and generated, with 95 %% intervals"
            )
            _benchmark_arguments(one, name, found.config)


def _common(
    parser: Parser, run: Callable[[argparse.Namespace], int | None], of: str = "of the data"
) -> None:
    """Adds the options that all evaluations have."""
    parser.add_argument(
        "--seed", type=seed, default=0, help=f"random seed {of} (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write rows.jsonl and summary.json there; a killed run resumes (default: none)",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="score the predictions in this file instead of a model (default: none)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON (default: as a table)"
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def _scenes_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--levels", metavar="a,b", help="levels of questions (default: the seven levels and novel)"
    )
    parser.add_argument(
        "--sprites", metavar="DIR", default="", help="folder of a sprite pack (default: the emoji)"
    )
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument(
        "--limit",
        type=positive,
        default=2400,
        metavar="N",
        help="number of questions (default: %(default)s)",
    )
    _common(parser, _scenes)


def _photos_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--levels",
        metavar="a,b",
        help="name, refer, reason, multi, absent, box, click, example (default: all)",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        required=True,
        help="one folder a set, with index.json, images/ and masks/",
    )
    parser.add_argument("--split", default="val", help="train or val (default: %(default)s)")
    parser.add_argument(
        "--limit",
        type=positive,
        default=150,
        metavar="N",
        help="number of questions of each level (default: %(default)s)",
    )
    parser.add_argument(
        "--elsewhere",
        action="store_true",
        help="baseline: show another photograph than the one asked about (default: off)",
    )
    parser.add_argument(
        "--sheet",
        type=positive,
        default=0,
        metavar="N",
        help="draw N answers, picked at random, into sheet.png of --out (default: none)",
    )
    _common(parser, _photos)


def _episodes_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--benchmark",
        choices=["scenes", "pascal", "coco", "fss"],
        default="scenes",
        help="drawn scenes, PASCAL-5i, COCO-20i or FSS-1000 (default: %(default)s)",
    )
    parser.add_argument(
        "--root",
        default="",
        metavar="DIR",
        help="folder of the images of pascal, coco or fss (default: none)",
    )
    parser.add_argument(
        "--fold", type=int, default=0, metavar="F", help="fold, 0 to 3 (default: %(default)s)"
    )
    parser.add_argument(
        "--shots",
        type=positive,
        default=1,
        metavar="K",
        help="reference images per episode (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt",
        choices=["reference", "label", "both"],
        default="reference",
        help="what the model gets: reference images, the class name, or both "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--sprites",
        metavar="DIR",
        default="",
        help="folder of a sprite pack, all of whose classes are withheld (default: the emoji)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=0,
        metavar="N",
        help="episodes per group of classes (default: 1000, or 20 of each class if that is more)",
    )
    _common(parser, _episodes)


def _benchmark_arguments(parser: Parser, name: str, config: type) -> None:
    """Adds the options of a benchmark; --split and --sentences only where its data set has them."""
    known = {field.name for field in fields(config)}
    parser.add_argument(
        "--root",
        default="",
        metavar="DIR",
        help="LISA's dataset folder, or the folder of the data set (default: the current one)",
    )
    if "split" in known:
        parser.add_argument(
            "--split",
            default=SPLITS.get(name, "val"),
            help="the split to score (default: %(default)s)",
        )
    if "sentences" in known:
        parser.add_argument(
            "--sentences",
            choices=["first", "all"],
            default="first",
            help="texts of each image to ask (default: %(default)s)",
        )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="score only the first N samples (default: all)"
    )
    add_overrides(parser, "data.void=255")
    parser.set_defaults(name=name)
    _common(parser, _benchmark, "of the confidence intervals")


def _model(options: argparse.Namespace, *needs: Any) -> Any:
    """The model to score; None with --predictions.

    Raises `InputError` where the model lacks one of the capabilities `needs`.
    """
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    if options.predictions:
        return None
    refuse_fall_back(options)
    segmenter = load_model(options)
    segmenter.capabilities.require(f"eval {getattr(options, 'name', '')}".strip(), *needs)
    return segmenter


def _report(options: argparse.Namespace, summary: dict, show: Callable[[dict], None]) -> None:
    if is_main_process():
        print(json.dumps(summary)) if options.json else show(summary)


def _scenes(options: argparse.Namespace) -> None:
    from reasonseg.evaluation.scenes import SEVEN, evaluate_scenes
    from reasonseg.evaluation.tables import print_scenes

    options.name = "scenes"
    levels = tuple(options.levels.split(",")) if options.levels else (*SEVEN, "novel")
    summary = evaluate_scenes(
        _model(options, "words", "places"),
        split=options.split,
        limit=options.limit,
        seed=options.seed,
        levels=levels,
        sprites=options.sprites,
        out=options.out,
        predictions=options.predictions,
        progress=sys.stderr.isatty(),
    )
    _report(options, summary, print_scenes)


def _photos(options: argparse.Namespace) -> None:
    from reasonseg.evaluation.photos import PLACED, WORDED, evaluate_photos
    from reasonseg.evaluation.tables import print_photos

    options.name = "photos"
    if options.predictions:
        raise InputError("eval photos asks a model; leave --predictions out")
    levels = tuple(options.levels.split(",")) if options.levels else (*WORDED, *PLACED)
    if unknown := [level for level in levels if level not in (*WORDED, *PLACED)]:
        raise InputError(f"--levels: {unknown[0]!r} is not one of {', '.join((*WORDED, *PLACED))}")
    if options.sheet and not options.out:
        raise InputError("--sheet: name a folder to write to with --out")
    summary = evaluate_photos(
        _model(options),
        root=options.root,
        split=options.split,
        limit=options.limit,
        levels=levels,
        seed=options.seed,
        elsewhere=options.elsewhere,
        sheet=options.sheet,
        out=options.out,
        progress=sys.stderr.isatty(),
    )
    _report(options, summary, print_photos)


def _episodes(options: argparse.Namespace) -> None:
    from reasonseg.datasets.episodes import Config
    from reasonseg.evaluation.few_shot import evaluate_episodes
    from reasonseg.evaluation.tables import print_episodes

    options.name = f"episodes --prompt {options.prompt}"
    config = Config(
        options.root,
        options.benchmark,
        options.fold,
        options.shots,
        options.prompt,
        count=options.limit,
        seed=options.seed,
        sprites=options.sprites,
    )
    summary = evaluate_episodes(
        _model(options, "words" if options.prompt == "label" else "references"),
        config,
        out=options.out,
        predictions=options.predictions,
        progress=sys.stderr.isatty(),
    )
    _report(options, summary, lambda found: print_episodes(options.benchmark, found))


def _benchmark(options: argparse.Namespace) -> None:
    from reasonseg.evaluation.benchmarks import evaluate_benchmark
    from reasonseg.evaluation.tables import print_benchmark

    found = named_sets(options.name)[options.name]
    given = {
        name: getattr(options, name)
        for name in ("root", "split", "sentences")
        if hasattr(options, name)
    }
    summary = evaluate_benchmark(
        _model(options, "words"),
        found.build(options.overrides, **given),
        name=options.name,
        limit=options.limit,
        seed=options.seed,
        out=options.out,
        predictions=options.predictions,
        progress=sys.stderr.isatty(),
    )
    _report(options, summary, lambda summary: print_benchmark(options.name, summary))


COMMANDS = (
    Command("eval", "score a model on a data set", "Scores a model on a data set.", _arguments),
)
