"""The commands `ask` and `chat`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from reasonseg.cli.options import (
    Command,
    Parser,
    add_bank_options,
    add_model_options,
    box,
    image_source,
    images_and_text,
    in_pixels,
    load_model,
    point,
    positive,
    seed,
    share,
    temperature,
)
from reasonseg.errors import InputError


def _ask_arguments(parser: Parser) -> None:
    parser.add_argument(
        "words",
        metavar="IMAGE [IMAGE ...] [TEXT]",
        nargs="+",
        help="the images to ask about (files, patterns such as '*.jpg', - for standard input, "
        "data: URLs), and the question in quotes",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write overlay.png, mask-*.png and answer.json there, in a folder for each of "
        "several images (default: write nothing)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the answer as JSON (default: as text)"
    )
    parser.add_argument(
        "--box",
        type=box,
        action="append",
        default=[],
        metavar="x0,y0,x1,y1",
        help="a box around the object, in pixels or as fractions of the image; may be repeated "
        "(default: none)",
    )
    parser.add_argument(
        "--point",
        type=point,
        action="append",
        default=[],
        metavar="x,y[,0]",
        help="a point on the object, with ,0 off it, in pixels or as fractions; may be repeated "
        "(default: none)",
    )
    _add_reference_options(parser)
    _add_answer_options(parser)
    add_model_options(parser)


def _add_reference_options(parser: Parser) -> None:
    """Adds the options of reference images."""
    parser.add_argument(
        "--ref",
        action="append",
        default=[],
        metavar="IMG",
        help="a reference image; may be repeated (default: none)",
    )
    parser.add_argument(
        "--ref-mask",
        action="append",
        default=[],
        metavar="PNG",
        help="the mask of a reference image; one for each --ref, in the same order (default: none)",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="L",
        help="the label of a reference, in the same order (default: no label)",
    )
    add_bank_options(parser, "; with --label only those of that label")


def _add_answer_options(parser: Parser) -> None:
    """Adds the options of the answer."""
    parser.add_argument(
        "--refine",
        action="store_true",
        help="sharpen SegGPT's masks with the SAM of --sam (default: off)",
    )
    parser.add_argument(
        "--force-seg", action="store_true", help="always draw a mask (default: off)"
    )
    parser.add_argument(
        "--absent-threshold",
        type=share,
        default=0.5,
        metavar="P",
        help="answer absent where the probability of <REJ>, relative to <REJ> and <SEG>, is at "
        "least this (0..1, default: %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="longest answer in tokens (default: the model's setting)",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        help="sampling temperature; 0 means greedy (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the sampling (default: %(default)s)"
    )


def _ask(options) -> None:
    from reasonseg import Query
    from reasonseg.structures.images import read_image

    files, options.text = images_and_text(options.words)
    references = _references(options)
    given = references or options.point or options.box or options.bank
    if not (options.text.strip() or given):
        Query(read_image(*_source(files[0])))  # raises the error before a model is loaded
    if options.bank and not os.path.isdir(options.bank):
        raise InputError(f"--bank {options.bank} is no folder")
    images = {file: read_image(*_source(file)) for file in dict.fromkeys(files)}
    folders = dict(zip(images, _folders(options.out, list(images)), strict=True))
    segmenter = load_model(options)
    if options.bank:
        segmenter.capabilities.require("--bank", "references")
    for file, image in images.items():
        if len(images) > 1 and not options.json:
            print(file)
        _ask_one(options, segmenter, file, image, references, folders[file])


def _source(word: str) -> tuple[Any, int, str]:
    """The arguments of `read_image` for an image on the command line."""
    from reasonseg.structures.images import MAX_PIXELS

    source, name = image_source(word)
    return source, MAX_PIXELS, name


def _folders(out: str | None, files: list[str]) -> list[str | None]:
    """The folder to write to for each image: `out`, or one below it where there are several."""
    if out is None or len(files) == 1:
        return [out] * len(files)
    names: dict[str, None] = {}
    for k, file in enumerate(files):
        stem = os.path.splitext(os.path.basename(file))[0] if os.path.isfile(file) else ""
        name = stem or f"image-{k}"
        names[name if name not in names else f"{name}-{k}"] = None
    return [os.path.join(out, name) for name in names]


def _ask_one(options, segmenter, file: str, image, references: list, out: str | None) -> None:
    """Asks about one image; prints the answer and writes it to the folder `out`."""
    import json

    from reasonseg import Query

    shown = references + (_chosen(options, segmenter, image) if options.bank else [])
    size = image.shape[:2]
    points = [(*in_pixels(p[:2], size, "--point"), p[2]) for p in options.point]
    boxes = [tuple(in_pixels(b, size, "--box")) for b in options.box]
    query = Query(image, options.text, shown, points, boxes)  # type: ignore[arg-type]
    answer = segmenter(
        query,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        force_seg=options.force_seg,
        absent_threshold=options.absent_threshold,
        agreement=len(shown) > 1,
        refine=options.refine,
    )
    name = file if os.path.isfile(file) else "image.png"
    answer.meta |= {"image": name, "size": list(query.size)}
    traced = []
    if out:
        answer.save(out)
        if "trace" in answer.meta:
            from reasonseg.segmenters.trace import write_trace

            traced = write_trace(answer, Path(out))
    if options.json:
        print(json.dumps(answer.to_dict(), ensure_ascii=False))
        return
    _print(answer, bool(shown))
    if lost := answer.meta.get("errors"):
        print(
            f"warning: {len(lost)} of {answer.meta['calls']} calls failed: {lost[0]}",
            file=sys.stderr,
        )
    if out:
        print(f"wrote {out}/overlay.png, {len(answer.masks)} masks and answer.json")
    for written in traced:
        print(f"wrote {written}")


def _print(answer, shown: bool) -> None:
    """Prints an answer; `shown` is whether references were used."""
    without = "reference images" if shown else "points or boxes"
    print(answer.text or f"({without} only: the answer has no text)")
    sizes = [100 * mask.mean() for mask in answer.masks]
    for label, score, size in zip(answer.labels, answer.scores, sizes, strict=True):
        print(f"  {label or 'mask'}: score {score:.2f}, {size:.1f} % of the image")
    for used in answer.references:
        agreed = f", agreement {used['agreement']:.2f}" if "agreement" in used else ""
        print(
            f"  reference {used['name'] or 'without name'} ({used['label'] or 'no label'}): weight "
            f"{used['weight']:.2f}{agreed}"
        )
    if answer.status == "absent":
        print(
            "  absent: the model answers that it is not in this image "
            "(--absent-threshold sets the threshold, --force-seg always draws a mask)"
            if "calls" not in answer.meta
            else "  absent: the model answers that it is not in this image"
        )
    elif answer.status == "unparseable":
        said = str(answer.meta.get("said", ""))[:300]
        print(f"  no mask: the model's answer holds no place that can be read: {said!r}")
    elif answer.status == "no_seg":
        print("  no mask: the model answered in words only (--force-seg always draws a mask)")


def _references(options) -> list:
    """The references of the command line, in order."""
    from reasonseg import Reference

    named = 0 if options.bank else len(options.label)
    if len(options.ref) != len(options.ref_mask) or named > len(options.ref):
        raise InputError(
            f"{len(options.ref)} --ref, {len(options.ref_mask)} --ref-mask, {len(options.label)} "
            "--label: pair them"
        )
    labels = [None if options.bank else label for label in options.label] + [None] * len(
        options.ref
    )
    references = [
        Reference.open(i, m, label)
        for i, m, label in zip(options.ref, options.ref_mask, labels, strict=False)
    ]
    for reference, file in zip(references, options.ref, strict=True):
        reference.name = file
    return references


def _chosen(options, segmenter, image) -> list:
    """References from the bank: `--shots` of them for each `--label`."""
    import sys

    from reasonseg.serving.reference_bank import Bank

    bank, chosen = Bank(options.bank), []
    for label in options.label or [None]:
        for choice in bank.select(
            segmenter, image, options.shots, label, options.by, progress=sys.stderr.isatty()
        ):
            chosen.append(choice.reference)
    for problem in bank.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return chosen


def _chat_arguments(parser: Parser) -> None:
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="the first image (default: give it with /image)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="out/chat",
        help="the folder where each turn is written (default: %(default)s)",
    )
    add_model_options(parser)


def _chat(options) -> None:
    from reasonseg.serving.terminal import converse

    converse(lambda: load_model(options), options.image, options.out)


COMMANDS = (
    Command(
        "ask",
        "ask one question about one image",
        "Asks one question about an image and prints or writes its masks.",
        _ask_arguments,
        _ask,
    ),
    Command(
        "chat",
        "ask several questions about an image",
        "A conversation about images in the terminal; /help lists its commands.",
        _chat_arguments,
        _chat,
    ),
)
