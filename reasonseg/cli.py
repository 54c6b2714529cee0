"""The command `reasonseg`. Heavy libraries load only in the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from reasonseg import __version__
from reasonseg.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. User mistakes are one line on stderr and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"reasonseg: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reasonseg: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line."""

    def error(self, message: str):
        print(f"reasonseg: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(prog="reasonseg", description="Words, examples, or both into image masks.")
    parser.add_argument("--version", action="version", version=f"reasonseg {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for add in (_add_ask, _add_chat, _add_train, _add_import, _add_eval, _add_scenes, _add_show, _add_doctor):
        add(commands)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Every keyword of `Segmenter.from_pretrained`."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", help="folder or hub id (default: the embedded model)")
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    group.add_argument("--quantization", choices=["int8", "nf4"], help="of the language model")
    group.add_argument("--clip", metavar="DIR", help="vision tower of a released checkpoint that comes without one")
    group.add_argument("--sam", metavar="DIR", help="mask decoder to use instead")
    group.add_argument("--template", help="conversation strings: plain, llava_v1, llava_llama_2")
    group.add_argument("--read", choices=["predicting", "at"], help="which state of <SEG> prompts the decoder")
    group.add_argument(
        "--allow", action="append", default=[], metavar="PREFIX", help="weights that may be missing or left over"
    )
    group.add_argument("--revision", help="of a hub model")


def load_model(options: argparse.Namespace, notice: bool = True):
    """The segmenter the options name; its notice, if it has one, goes to stderr once."""
    from reasonseg.libraries import quiet_libraries

    quiet_libraries()
    from reasonseg import Segmenter

    names = ("device", "dtype", "quantization", "clip", "sam", "template", "read", "revision")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    try:
        segmenter = Segmenter.from_pretrained(options.model, allow=tuple(options.allow), **given)
    except RuntimeError as error:  # torch's word for a device it does not know or have
        raise InputError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    if notice and segmenter.settings.notice:
        print(segmenter.settings.notice, file=sys.stderr)
    return segmenter


def _numbers(text: str, counts: tuple[int, ...], what: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return values


def _box(text: str) -> tuple[float, ...]:
    return _numbers(text, (4,), "a box x0,y0,x1,y1")


def _point(text: str) -> tuple[float, float, int]:
    x, y, *on = _numbers(text, (2, 3), "a point x,y or x,y,0")
    return x, y, int(on[0]) if on else 1


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _add_ask(commands) -> None:
    parser = commands.add_parser("ask", help="one question about one image", description="Asks for masks in an image.")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("text", metavar="TEXT", nargs="?", default="")
    parser.add_argument("--out", metavar="DIR", help="write overlay.png, mask-*.png and answer.json there")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--box", type=_box, action="append", default=[], metavar="x0,y0,x1,y1")
    parser.add_argument("--point", type=_point, action="append", default=[], metavar="x,y[,0]")
    parser.add_argument("--ref", action="append", default=[], metavar="IMG", help="an example image")
    parser.add_argument("--ref-mask", action="append", default=[], metavar="PNG", help="its mask, in the same order")
    parser.add_argument("--label", action="append", default=[], metavar="L", help="its label, in the same order")
    parser.add_argument("--force-seg", action="store_true", help="a mask in any case")
    parser.add_argument(
        "--absent-threshold", type=float, default=0.5, metavar="P", help="share of <REJ> that means absent"
    )
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    add_model_options(parser)
    parser.set_defaults(run=_ask)


def _ask(options) -> None:
    import json

    from reasonseg import Query, Reference

    if len(options.ref) != len(options.ref_mask) or len(options.label) > len(options.ref):
        raise InputError(
            f"{len(options.ref)} --ref, {len(options.ref_mask)} --ref-mask, {len(options.label)} --label: pair them"
        )
    labels = options.label + [None] * len(options.ref)
    references = [
        Reference.open(i, m, label) for i, m, label in zip(options.ref, options.ref_mask, labels, strict=False)
    ]
    query = Query.open(options.image, options.text, points=options.point, boxes=options.box, references=references)
    segmenter = load_model(options)
    answer = segmenter(
        query, max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed,
        force_seg=options.force_seg, absent_threshold=options.absent_threshold,
    )  # fmt: skip
    if options.out:
        answer.save(options.out)
    if options.json:
        print(json.dumps(answer.to_dict(), ensure_ascii=False))
        return
    print(answer.text or "(places only: no words were said)")
    sizes = [100 * mask.mean() for mask in answer.masks]
    for label, score, size in zip(answer.labels, answer.scores, sizes, strict=True):
        print(f"  {label or 'mask'}: score {score:.2f}, {size:.1f} % of the image")
    if answer.status == "absent":
        print(
            "  absent: the model says it is not in this image (--absent-threshold moves the line, --force-seg overrides)"
        )
    elif answer.status == "no_seg":
        print("  no mask: the model only talked (--force-seg gets one in any case)")
    if options.out:
        print(f"wrote {options.out}/overlay.png, {len(answer.masks)} masks and answer.json")


def _add_chat(commands) -> None:
    parser = commands.add_parser(
        "chat", help="a conversation about an image", description="Talks about images; /help lists what it knows."
    )
    parser.add_argument("image", metavar="IMAGE", nargs="?")
    parser.add_argument(
        "--out", metavar="DIR", default="out/chat", help="where each turn is written (default: %(default)s)"
    )
    add_model_options(parser)
    parser.set_defaults(run=_chat)


def _chat(options) -> None:
    from reasonseg.chat import converse

    converse(lambda: load_model(options), options.image, options.out)


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train", help="run the stages of a config", description="Trains, or goes on where a run stopped."
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.set_defaults(run=_train)


def _train(options) -> None:
    from reasonseg.libraries import quiet_libraries
    from reasonseg.runs import read_run

    settings = read_run(options.config, options.overrides)
    quiet_libraries()
    from reasonseg.train import train

    train(settings)
    print(f"wrote {settings.out}/model")


def _add_import(commands) -> None:
    parser = commands.add_parser(
        "import", help="released LISA or LLaVA weights into a model folder",
        description="Reads a released checkpoint (LISA v1; LLaVA v1 with --sam) and writes a folder for --model.",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="folder, hub id, or the weight file of a training checkpoint")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("--verify", action="store_true", help="run the original segment-anything beside it and compare")
    parser.add_argument("--clip", metavar="DIR", help="vision tower, where it does not lie beside the weights")
    parser.add_argument("--sam", metavar="FILE", help="mask decoder to use instead: .pth, folder or hub id")
    parser.add_argument("--template", help="conversation strings: llava_v1, vicuna_v1, llava_llama_2")
    parser.add_argument("--read", choices=["predicting", "at"], help="which state of <SEG> prompts the decoder")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="stored precision (default: as it is)"
    )
    parser.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="weights that need not fit")
    parser.add_argument("--revision", help="of a hub model")
    parser.set_defaults(run=_import)


def _import(options) -> None:
    from reasonseg.libraries import quiet_libraries

    quiet_libraries()
    from reasonseg.checkpoint import DTYPES
    from reasonseg.released.importing import differences, read_to_import

    layout, segmenter = read_to_import(
        options.source, revision=options.revision, dtype=DTYPES.get(options.dtype), clip=options.clip,
        sam_from=options.sam, template=options.template, at=options.read, allow=tuple(options.allow),
    )  # fmt: skip
    segmenter.save_pretrained(options.target)
    count = sum(p.numel() for p in segmenter.parameters()) / 1e6
    print(f"{count:.1f} M parameters written to {options.target}")
    if options.verify:
        found = differences(segmenter, layout, options.sam)
        print("largest difference to segment-anything: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))


def _add_eval(commands) -> None:
    parser = commands.add_parser("eval", help="score a model", description="Scores a model on a data set.")
    names = parser.add_subparsers(title="data sets", required=True, metavar="NAME", parser_class=Parser)
    scenes = names.add_parser("scenes", help="drawn scenes, seven levels and novel")
    scenes.add_argument("--levels", metavar="a,b", help="some of the levels")
    scenes.add_argument("--sprites", metavar="DIR", default="", help="a sprite pack instead of the emoji")
    scenes.add_argument("--split", default="test")
    scenes.add_argument(
        "--limit", type=_positive, default=2400, metavar="N", help="questions in all (default: %(default)s)"
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
        one.add_argument("--limit", type=_positive, metavar="N", help="only the first samples")
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


def _add_scenes(commands) -> None:
    parser = commands.add_parser("scenes", help="draw scenes or render sprites", description="The embedded world.")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=Parser)
    draw = verbs.add_parser("draw", help="a contact sheet of scenes with questions and true masks")
    draw.add_argument("--out", required=True, metavar="DIR")
    draw.add_argument("--split", default="val")
    draw.add_argument("--count", type=_positive, default=12)
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--levels", metavar="a,b")
    draw.add_argument("--sprites", metavar="DIR", default="")
    draw.set_defaults(run=_scenes_draw)
    sprites = verbs.add_parser("sprites", help="render the emoji pack into a folder")
    sprites.add_argument("--out", required=True, metavar="DIR")
    sprites.set_defaults(run=_scenes_sprites)


def _scenes_draw(options) -> None:
    from reasonseg.datasets.scenes import SEVEN, Config
    from reasonseg.sheet import save_sheet

    levels = tuple(options.levels.split(",")) if options.levels else SEVEN
    data = Config(options.split, options.count, options.seed, levels=levels, sprites=options.sprites).build()
    path = save_sheet([data[i] for i in range(len(data))], options.out)
    print(f"wrote {path}, {options.count} images with masks and samples.jsonl")


def _scenes_sprites(options) -> None:
    from pathlib import Path

    from reasonseg.scenes.sprites import render_pack

    print(f"wrote {render_pack(Path(options.out))} sprites and index.json to {options.out}")


def _add_show(commands) -> None:
    parser = commands.add_parser(
        "show", help="print a config or a model", description="What a config or a model says, in full."
    )
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT", parser_class=Parser)
    config = what.add_parser("config", help="the resolved settings of a config")
    config.add_argument("config", metavar="CONFIG")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.set_defaults(run=_show_config)
    model = what.add_parser("model", help="parts and sizes of a model")
    add_model_options(model)
    model.set_defaults(run=_show_model)


def _show_config(options) -> None:
    from reasonseg.libraries import quiet_libraries

    quiet_libraries()
    import yaml

    from reasonseg.config import dump
    from reasonseg.runs import read_run

    settings = read_run(options.config, options.overrides)
    print(yaml.safe_dump(dump(settings), sort_keys=False, allow_unicode=True), end="")


def _show_model(options) -> None:
    from reasonseg.tables import print_model

    print_model(load_model(options, notice=False))


def _add_doctor(commands) -> None:
    parser = commands.add_parser(
        "doctor", help="what works on this machine", description="Checks the machine; names the remedy."
    )
    parser.set_defaults(run=_doctor)


def _doctor(options) -> int:
    from reasonseg.doctor import examine

    return examine()


if __name__ == "__main__":
    sys.exit(main())
