"""Tables of scores for the terminal (rich)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from reasonseg.evaluation.dataset_report import listed


def print_scenes(summary: dict) -> None:
    """Prints the scores of `eval scenes`, a row per level, and the baselines."""
    table = Table(title="eval scenes", caption="strict: gIoU where extra masks count as errors")
    for name in ("level", "gIoU", "95 % interval", "strict", "cIoU", "N-acc", "T-acc", "n"):
        table.add_column(name, justify="left" if name == "level" else "right")
    for level, row in (*summary["levels"].items(), ("overall", summary["overall"])):
        interval = _interval(row.get("ci95"))
        cells = [_number(row.get(key)) for key in ("giou", "strict_giou", "ciou", "n_acc", "t_acc")]
        table.add_row(
            level,
            cells[0],
            interval,
            *cells[1:],
            str(row["n"]),
            style="bold" if level == "overall" else None,
        )
    console = Console()
    console.print(table)
    baselines = Table(title="baselines")
    baselines.add_column("baseline")
    baselines.add_column("gIoU", justify="right")
    meanings = {
        "random_object": "a random object's true mask",
        "text_only": "this model, shown another image",
        "true_object": "this decoder, with the object's box as prompt",
    }
    for name, row in summary["baselines"].items():
        baselines.add_row(f"{name}: {meanings[name]}", _number(row["giou"]))
    console.print(baselines)


def print_photos(summary: dict) -> None:
    """Prints the scores of `eval photos`, a row per level."""
    table = Table(title="eval photos", caption="n: questions; answered: with a mask")
    for name in ("level", "gIoU", "95 % interval", "N-acc", "answered", "n"):
        table.add_column(name, justify="left" if name == "level" else "right")
    for level, row in summary["levels"].items():
        cells = [_number(row.get(key)) for key in ("giou", "n_acc", "answered")]
        table.add_row(
            level, cells[0], _interval(row.get("ci95")), cells[1], cells[2], str(row["n"])
        )
    console = Console()
    console.print(table)
    n_acc, t_acc = _number(summary["n_acc"]), _number(summary["t_acc"])
    console.print(f"of all questions in words: N-acc {n_acc}, T-acc {t_acc}")
    if "box_itself" in summary["levels"].get("box", {}):
        console.print(
            f"the box itself as a mask: {_number(summary['levels']['box']['box_itself'])}"
        )
    if summary["left_out"]:
        console.print(
            f"left out, since this model cannot be asked: {', '.join(summary['left_out'])}"
        )


def print_benchmark(name: str, summary: dict) -> None:
    """Prints the scores of a published benchmark: teacher-forced and generated, short and long."""
    table = Table(title=f"eval {name}")
    for column in ("questions", "answers", "gIoU", "95 %", "cIoU", "95 %", "N-acc", "T-acc", "n"):
        table.add_column(column, justify="left" if column in ("questions", "answers") else "right")
    for which, part in (
        ("all", summary),
        *((k, summary[k]) for k in ("short", "long") if k in summary),
    ):
        for way in ("teacher_forced", "generated"):
            if row := part.get(way):
                interval = _interval(row.get("ci95"))
                cells = [_number(row.get(key)) for key in ("giou", "ciou", "n_acc", "t_acc")]
                cells[1:1] = [interval]
                cells[3:3] = [_interval(row.get("ciou_ci95"))]
                table.add_row(which, way.replace("_", "-"), *cells, str(row["n"]))
    console = Console()
    console.print(table)
    if summary["errors"]:
        console.print(f"{summary['errors']} samples could not be read; rows.jsonl names them")
    for line in listed("note: ", summary.get("remarks", [])):
        console.print(line, highlight=False, markup=False)


def print_episodes(name: str, summary: dict) -> None:
    """Prints few-shot scores, separately for classes seen in training and withheld classes."""
    table = Table(title=f"eval episodes, {name}")
    for column in ("classes", "mIoU", "95 % interval", "FB-IoU", "episodes"):
        table.add_column(column, justify="left" if column == "classes" else "right")
    for group, row in summary.items():
        interval = _interval(row.get("ci95"))
        table.add_row(group, _number(row["miou"]), interval, _number(row["fb_iou"]), str(row["n"]))
    Console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else "{:.3f} - {:.3f}".format(*ends)
