"""`train`."""

from __future__ import annotations


def add_train(commands) -> None:
    """`train CONFIG [key=value ...]`."""
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
