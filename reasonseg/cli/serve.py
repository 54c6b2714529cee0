"""`serve`."""

from __future__ import annotations

import os
import sys
from typing import Any

from reasonseg.cli.options import add_model_options, load_model, positive
from reasonseg.errors import InputError


def add_serve(commands) -> None:
    """`serve`."""
    parser = commands.add_parser(
        "serve", help="answer over HTTP", description="Answers questions over HTTP, see /docs there."
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for every network (default: %(default)s)")
    parser.add_argument("--port", type=positive, default=8000, help="(default: %(default)s)")
    parser.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="questions answered together (default: 16)"
    )
    parser.add_argument(
        "--queue", type=positive, default=64, metavar="N", help="that may wait; beyond them 503 (default: 64)"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="to send a request and to answer it (default: 60)"
    )
    parser.add_argument("--max-body", type=float, default=32.0, metavar="MIB", help="of a request (default: 32)")
    parser.add_argument(
        "--max-pixels", type=float, default=40.0, metavar="M", help="million pixels of a picture (default: 40)"
    )
    parser.add_argument("--token", help="asked for as a bearer token (default: $REASONSEG_TOKEN, or none)")
    parser.add_argument("--no-page", action="store_true", help="only /v1 and its company, no page at /")
    parser.add_argument(
        "--fleet", action="store_true", help="on Ray Serve, with replicas that come and go with the load"
    )
    parser.add_argument("--replicas", type=positive, default=4, metavar="N", help="at most, with --fleet (default: 4)")
    parser.add_argument("--address", metavar="A", help="of a Ray cluster, with --fleet (default: this machine)")
    parser.add_argument("--tls-cert", metavar="FILE")
    parser.add_argument("--tls-key", metavar="FILE")
    add_model_options(parser)
    parser.set_defaults(run=_serve)


def _serve(options) -> None:
    try:
        import uvicorn

        from reasonseg.serving.api import make_app
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'reasonseg[serve]'") from None
    if options.fleet:
        return _fleet(options)
    if bool(options.tls_cert) != bool(options.tls_key):
        raise InputError("--tls-cert and --tls-key go together")
    for file in filter(None, (options.tls_cert, options.tls_key)):
        if not os.path.isfile(file):
            raise InputError(f"{file} does not exist")
    limits, token = _guards(options)
    if options.host not in ("127.0.0.1", "localhost", "::1") and token is None:
        print(f"reasonseg: {options.host} can be reached from outside, and no --token is asked for", file=sys.stderr)
    mount = None
    if not options.no_page:
        try:
            from reasonseg.serving.page import mount
        except ImportError as error:
            raise InputError(
                f"the page needs {error.name}: pip install 'reasonseg[serve]', or leave it out with --no-page"
            ) from None
    app = make_app(load_model(options), limits=limits, token=token, batch=options.batch, waiting=options.queue)
    if mount is not None:
        app = mount(app, token)
    uvicorn.run(
        app, host=options.host, port=options.port, ssl_certfile=options.tls_cert, ssl_keyfile=options.tls_key,
        timeout_keep_alive=10, timeout_graceful_shutdown=60, h11_max_incomplete_event_size=64 * 2**10, log_level="info",
    )  # fmt: skip


def _guards(options) -> tuple[Any, str | None]:
    """(limits, token) of a server."""
    from reasonseg.serving.requests import Limits

    limits = Limits(int(options.max_body * 2**20), int(options.max_pixels * 1e6), options.timeout)
    return limits, options.token or os.environ.get("REASONSEG_TOKEN") or None


def _fleet(options) -> None:
    try:
        from reasonseg.serving.ray_serve import run
    except ImportError as error:
        raise InputError(f"--fleet needs {error.name}: pip install 'reasonseg[serve,fleet]'") from None
    from reasonseg.cli.options import model_keywords

    if options.tls_cert or options.tls_key:
        raise InputError("--fleet has no TLS of its own; put a proxy that has before it")
    limits, token = _guards(options)
    run(
        model_keywords(options), host=options.host, port=options.port, limits=limits, token=token, waiting=options.queue,
        replicas=options.replicas, page=not options.no_page, address=options.address,
    )  # fmt: skip


def add_annotate(commands) -> None:
    """`annotate INPUT OUTPUT`."""
    parser = commands.add_parser(
        "annotate", help="masks of many pictures, on one machine or many", description="Annotates pictures on Ray."
    )
    parser.add_argument("input", metavar="INPUT", help="a folder, a .parquet with a column image, or a COCO .json")
    parser.add_argument(
        "output", metavar="OUTPUT", help="parquet files and annotations.json are written there; resumes"
    )
    parser.add_argument("--ask", action="append", default=[], metavar="TEXT", help="asked about every picture")
    parser.add_argument("--queries", metavar="FILE", help="questions, one a line")
    parser.add_argument("--bank", metavar="DIR", default="", help="annotated images to choose examples from")
    parser.add_argument("--shots", type=positive, default=1, metavar="K", help="examples to choose (default: 1)")
    parser.add_argument("--by", choices=["pixel", "global", "thing"], default="pixel")
    parser.add_argument("--address", metavar="A", help="of a Ray cluster, or auto (default: this machine)")
    parser.add_argument(
        "--models", type=positive, metavar="N", help="at work at a time (default: one a GPU, or one for two cores)"
    )
    parser.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="pictures that go through together (default: 16)"
    )
    parser.add_argument(
        "--shard", type=positive, default=64, metavar="N", help="pictures of one unit of work (default: 64)"
    )
    add_model_options(parser)
    parser.set_defaults(run=_annotate)


def _annotate(options) -> None:
    try:
        from reasonseg.serving.ray_annotate import Task, annotate, questions_in
    except ImportError as error:
        raise InputError(f"annotate needs {error.name}: pip install 'reasonseg[fleet]'") from None
    from reasonseg.cli.options import model_keywords

    questions = (*options.ask, *(questions_in(options.queries) if options.queries else ()))
    bank = os.path.abspath(options.bank) if options.bank else ""
    model = model_keywords(options)
    for name in ("source", "clip", "sam"):  # the pool has folders of its own
        if model.get(name) and os.path.exists(model[name]):
            model[name] = os.path.abspath(model[name])
    task = Task(questions, bank, options.shots, options.by, model, options.batch)
    counts = annotate(
        options.input, options.output, task, address=options.address, models=options.models, shard=options.shard,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(", ".join(f"{n} {status}" for status, n in sorted(counts.items())) + f"; wrote {options.output}")


def add_export(commands) -> None:
    """`export SRC DST --format F`."""
    parser = commands.add_parser(
        "export", help="answers in the formats of others", description="Writes masks in another format."
    )
    parser.add_argument("source", metavar="SRC", help="the folder of ask --out, or of annotate")
    parser.add_argument("out", metavar="DST")
    parser.add_argument("--format", choices=["coco", "labelme", "yolo", "png", "labelstudio"], required=True)
    parser.set_defaults(run=_export)


def _export(options) -> None:
    from reasonseg.structures.export import export, records

    export(records(options.source), options.out, options.format)
    print(f"wrote {options.out}")


COMMANDS = (add_serve, add_annotate, add_export)
