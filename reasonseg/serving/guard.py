"""The guard of the HTTP app (token, errors, metrics), and its status paths.

Every error is answered as `{"error": "..."}`; no message holds a path or a traceback.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from reasonseg.serving.bodies import forget, path_of
from reasonseg.serving.engine import Engine
from reasonseg.serving.metrics import Metrics

log = logging.getLogger("reasonseg.serving")
# paths that need the token; the page has its own login
GUARDED = (
    "/v1/",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/redoc",
)


STATUS = ("/healthz", "/readyz", "/metrics")


class Failure(Exception):
    """An HTTP error with its response, `{"error": message}`."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        told = message.encode("utf-8", "backslashreplace").decode()  # half a character of a request
        self.response = JSONResponse({"error": told}, status, headers)


def add_guard(app: FastAPI, metrics: Metrics, token: str | None) -> None:
    """Adds the token check, the error handlers and the request metrics to an app.

    `token` None means that no token is needed.
    """

    def count(scope: Scope, status: int, began: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        metrics.requests.labels(path, status).inc()
        metrics.seconds.labels(path).observe(time.monotonic() - began)

    @app.middleware("http")
    async def guard(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        if (
            token is not None
            and path_of(request.scope).startswith(GUARDED)
            and not _allowed(request, token)
        ):
            response: Response = JSONResponse(
                {"error": "a bearer token is needed"}, 401, {"WWW-Authenticate": "Bearer"}
            )
        else:
            try:
                response = await handle(request)
            except Exception:  # answered by `broke`, outside of this function
                count(request.scope, 500, began)
                raise
        count(request.scope, response.status_code, began)
        return response

    @app.exception_handler(Failure)
    async def failed(_: Request, failure: Failure) -> Response:
        forget(failure)
        return failure.response

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)
    async def broke(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return JSONResponse({"error": "internal error; see the log of the server"}, 500)


def _allowed(request: Request, token: str) -> bool:
    """Whether a request carries the token.

    Header values are bytes; clients write a token that is not ASCII as UTF-8 or as Latin-1.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    sent = given.strip().encode("latin-1")
    forms = [token.encode()] + (
        [token.encode("latin-1")] if max(token, default="") < "\u0100" else []
    )
    same = [hmac.compare_digest(sent, form) for form in forms]
    return scheme.lower() == "bearer" and any(same)


class Refusals:
    """The answer to unknown paths and methods below /v1 and of the status paths: 404 or 405."""

    def __init__(self, app: FastAPI):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with `{"error": ...}`, and 405 where the path has other methods."""
        routes = [r for r in self.app.routes if getattr(r, "methods", None)]
        near = [r for r in routes if r.matches(scope)[0] is Match.PARTIAL]
        methods = sorted({m for r in near for m in getattr(r, "methods", ())})
        response = JSONResponse({"error": "Not Found"}, 404)
        if methods:
            allowed = {"Allow": ", ".join(methods)}
            response = JSONResponse({"error": "Method Not Allowed"}, 405, allowed)
        await response(scope, receive, send)


def add_refusals(app: FastAPI) -> None:
    """Adds `Refusals` after all other paths of the app.

    Without them the page, which is mounted at /, would answer in its own way.
    """
    refusals = Refusals(app)
    for path in ("/v1", "/v1/{rest:path}", *STATUS, *(f"{path}/" for path in STATUS)):
        app.router.routes.append(Route(path, refusals, include_in_schema=False))


def add_status(app: FastAPI, metrics: Metrics, engine: Engine) -> None:
    """Adds the paths /healthz, /readyz and /metrics to an app."""

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["status"])
    async def healthz() -> dict[str, str]:
        """Says that the process is alive."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get(
        "/readyz",
        tags=["status"],
        responses={503: {"description": "the server stops, or the model thread has ended"}},
    )
    async def readyz() -> Response:
        """Says whether the server accepts questions, and how many wait."""
        ready = engine.open and engine.alive
        return JSONResponse(
            {"status": "ready" if ready else "stopping", "waiting": engine.depth},
            200 if ready else 503,
        )

    @app.get("/metrics", tags=["status"], response_class=Response)
    async def shown() -> Response:
        """Metrics in Prometheus format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
