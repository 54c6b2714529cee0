"""The command `show`: prints a config or a model."""

from __future__ import annotations

from typing import Any

from reasonseg.cli.options import (
    Command,
    Parser,
    add_config_arguments,
    add_model_options,
    load_model,
    verbs_of,
)


def _arguments(parser: Parser) -> None:
    what = verbs_of(parser, "what", "WHAT")
    config = what.add_parser("config", help="print all settings of a config, with defaults")
    add_config_arguments(config)
    config.set_defaults(run=_show_config)
    model = what.add_parser("model", help="print the components of a model and their sizes")
    add_model_options(model)
    model.set_defaults(run=_show_model)


def _show_config(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    import yaml

    from reasonseg.config.schema import dump
    from reasonseg.config.training import read_run

    settings = read_run(options.config, options.overrides)
    print(yaml.safe_dump(dump(settings), sort_keys=False, allow_unicode=True), end="")


def _show_model(options) -> None:
    print_model(load_model(options, notice=False))


def print_model(segmenter: Any) -> None:
    """Prints the components of a model with their sizes, and its settings."""
    from rich.console import Console
    from rich.table import Table

    settings = segmenter.settings
    table = Table(title=str(settings.about.get("name", "model")))
    for name in ("part", "kind", "class", "parameters", "dtype"):
        table.add_column(name, justify="right" if name == "parameters" else "left")
    for part in ("backbone", "prompter", "references", "decoder"):
        if (module := getattr(segmenter, part)) is None:
            continue
        inner = getattr(module, "model", module)
        weights = list(module.parameters())
        dtype = str(weights[0].dtype).removeprefix("torch.") if weights else ""
        count = sum(p.numel() for p in weights)
        table.add_row(part, getattr(settings, part).kind, type(inner).__name__, f"{count:,}", dtype)
    console = Console()
    console.print(table)
    if segmenter.backbone is None:
        console.print(
            f"reference images only, no text; score: {settings.score}; device: {segmenter.device}",
            markup=False,
        )
        return
    markers = segmenter.backbone.markers
    rej = (
        "none: this model never answers absent"
        if markers.rej is None
        else f"{markers.rej_text} = {markers.rej}"
    )
    console.print(f"markers: {markers.seg_text} = {markers.seg}, {rej}", markup=False)
    console.print(
        f"prompt state: {segmenter.prompter.config.at}; score: {settings.score}; device: "
        f"{segmenter.device}",
        markup=False,
    )


COMMANDS = (
    Command(
        "show",
        "print a config or a model",
        "Prints all settings of a config or a model.",
        _arguments,
    ),
)
