"""The guard of the HTTP app (token, errors, metrics), and its status paths.

Every error is answered as `{"error": "..."}`; no message holds a path or a traceback.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from reasonseg.serving.engine import Engine
from reasonseg.serving.metrics import Metrics
from reasonseg.serving.requests import path_of

log = logging.getLogger("reasonseg.serving")
# paths that need the token; the page has its own login
GUARDED = (
    "/v1/",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/redoc",
)


class Failure(Exception):
    """An HTTP error with its response, `{"error": message}`."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        self.response = JSONResponse({"error": message}, status, headers)


def add_guard(app: FastAPI, metrics: Metrics, token: str | None) -> None:
    """Adds the token check, the error handlers and the request metrics to an app.

    `token` None means that no token is needed.
    """

    @app.middleware("http")
    async def guard(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        clock = asyncio.get_running_loop().time
        began, route = clock(), request.scope
        if (
            token is not None
            and path_of(request.scope).startswith(GUARDED)
            and not _allowed(request, token)
        ):
            response: Response = JSONResponse(
                {"error": "a bearer token is needed"}, 401, {"WWW-Authenticate": "Bearer"}
            )
        else:
            response = await handle(request)
        path = getattr(route.get("route"), "path", "other")
        metrics.requests.labels(path, response.status_code).inc()
        metrics.seconds.labels(path).observe(clock() - began)
        return response

    @app.exception_handler(Failure)
    async def failed(_: Request, failure: Failure) -> Response:
        return failure.response

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broke(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return JSONResponse({"error": "internal error; see the log of the server"}, 500)


def _allowed(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def add_status(app: FastAPI, metrics: Metrics, engine: Engine) -> None:
    """Adds the paths /healthz, /readyz and /metrics to an app."""

    @app.get("/healthz", tags=["status"])
    async def healthz() -> dict[str, str]:
        """Says that the process is alive."""
        return {"status": "ok"}

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
