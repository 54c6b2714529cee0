"""The command `serve`."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from reasonseg.cli.options import (
    Command,
    Parser,
    add_model_options,
    load_model,
    model_keywords,
    port,
    positive,
    seconds,
)
from reasonseg.errors import InputError


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for all networks (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=port, default=8000, help="port to listen on (default: %(default)s)"
    )
    _add_limit_options(parser)
    _add_page_and_fleet_options(parser)
    add_model_options(parser)


def _add_limit_options(parser: Parser) -> None:
    """Adds the limits of batches and requests."""
    parser.add_argument(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="questions per batch (default: %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=64,
        metavar="N",
        help="requests that may wait; beyond that the status is 503 (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds to send a request, and again to answer it (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body",
        type=seconds,
        default=32.0,
        metavar="MIB",
        help="largest request in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=seconds,
        default=40.0,
        metavar="M",
        help="largest image in million pixels (default: %(default)s)",
    )


def _add_page_and_fleet_options(parser: Parser) -> None:
    """Adds the options of the token, the page, Ray Serve and TLS."""
    parser.add_argument(
        "--token", help="bearer token that clients must send (default: $REASONSEG_TOKEN, or none)"
    )
    parser.add_argument(
        "--no-page",
        action="store_true",
        help="only the API, without the web page at / (default: with the page)",
    )
    parser.add_argument(
        "--fleet",
        action="store_true",
        help="use Ray Serve, with replicas that follow the load (default: one process)",
    )
    parser.add_argument(
        "--replicas",
        type=positive,
        default=4,
        metavar="N",
        help="largest number of replicas, with --fleet (default: %(default)s)",
    )
    parser.add_argument(
        "--address",
        metavar="A",
        help="address of a Ray cluster, with --fleet (default: this machine)",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="TLS certificate, with --tls-key (default: no TLS)"
    )
    parser.add_argument(
        "--cors",
        action="append",
        metavar="ORIGIN",
        help="let pages of this origin, such as https://example.org, call the API; repeat for "
        "several (default: none)",
    )
    parser.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="path under which a proxy shows the server, such as /seg (default: none)",
    )
    parser.add_argument("--tls-key", metavar="FILE", help="TLS key (default: no TLS)")


def _serve(options) -> None:
    try:
        import uvicorn

        from reasonseg.serving.api import make_app
        from reasonseg.serving.http_protocol import HeadTimeout
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'reasonseg[serve]'") from None
    if options.fleet:
        return _fleet(options)
    if bool(options.tls_cert) != bool(options.tls_key):
        raise InputError("--tls-cert and --tls-key go together")
    for file in filter(None, (options.tls_cert, options.tls_key)):
        if not os.path.isfile(file):
            raise InputError(f"{file} does not exist")
    limits, token, root = _guards(options)
    if options.host not in ("127.0.0.1", "localhost", "::1") and token is None:
        print(
            f"reasonseg: {options.host} can be reached from other machines, and no --token is set",
            file=sys.stderr,
        )
    mount = None
    if not options.no_page:
        try:
            from reasonseg.serving.page import mount
        except ImportError as error:
            raise InputError(
                f"the page needs {error.name}: pip install 'reasonseg[serve]', or leave it out "
                "with --no-page"
            ) from None
    app = make_app(
        load_model(options),
        limits=limits,
        token=token,
        batch=options.batch,
        waiting=options.queue,
        origins=options.cors or (),
    )
    if mount is not None:
        app = mount(app, token, root)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        http=HeadTimeout,
        root_path=root,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=60,
        h11_max_incomplete_event_size=64 * 2**10,
        log_level="info",
    )


def _guards(options) -> tuple[Any, str | None, str]:
    """The (limits, token, root path) of a server from its options."""
    from reasonseg.serving.limits import Limits

    limits = Limits(int(options.max_body * 2**20), int(options.max_pixels * 1e6), options.timeout)
    if limits.body < 1024 or limits.pixels < 1024:
        raise InputError("--max-body or --max-pixels leaves room for no image; give more")
    for origin in options.cors or ():
        if not re.fullmatch(r"https?://[^/\s]+|\*", origin):
            raise InputError(
                f"--cors {origin}: give a scheme and a host, such as https://example.org, or *"
            )
    root = options.root_path.rstrip("/")
    if root and not re.fullmatch(r"(/[\w.~-]+)+", root):
        raise InputError(f"--root-path {options.root_path}: give a path such as /seg")
    return limits, _token(options.token), root


def _token(given: str | None) -> str | None:
    """The token of `--token` or of the environment; None where neither is set.

    Raises `InputError` for one that is set but empty, which would open the server to everybody.
    """
    name, token = "--token", given
    if given is None:
        name, token = "REASONSEG_TOKEN", os.environ.get("REASONSEG_TOKEN")
    if token is not None and (not token or token != token.strip() or not token.isprintable()):
        raise InputError(
            f"{name} is empty, or has spaces around it or control characters; give a token, or "
            f"leave {name} out for a server without one"
        )
    return token


def _fleet(options) -> None:
    try:
        from reasonseg.serving.ray_serve import run
    except ImportError as error:
        raise InputError(
            f"--fleet needs {error.name}: pip install 'reasonseg[serve,fleet]'"
        ) from None
    if options.tls_cert or options.tls_key:
        raise InputError("--fleet does not support TLS; put a proxy with TLS before it")
    limits, token, root = _guards(options)
    run(
        model_keywords(options),
        host=options.host,
        port=options.port,
        limits=limits,
        token=token,
        waiting=options.queue,
        replicas=options.replicas,
        page=not options.no_page,
        address=options.address,
        origins=tuple(options.cors or ()),
        root_path=root,
    )


COMMANDS = (
    Command(
        "serve",
        "answer over HTTP",
        "Answers questions over HTTP. The API is described at /docs of the server.",
        _arguments,
        _serve,
    ),
)
