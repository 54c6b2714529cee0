"""HTTP: one question, or a conversation, over the model's thread. Fields and keys are those of the
README and of /openapi.json.

Every answer that is no success is `{"error": "..."}`: 401 no or a wrong token, 404 no such
conversation, 408 too slow, 413 too large, 422 not understood, 503 too many wait (with Retry-After),
504 not answered in time. No message holds a path or a traceback.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from reasonseg import __version__
from reasonseg.errors import InputError
from reasonseg.serving.conversations import Conversations
from reasonseg.serving.engine import Busy, Engine, Late
from reasonseg.serving.metrics import Metrics
from reasonseg.serving.openapi import (
    DEFINITIONS,
    ERRORS,
    EXAMPLE,
    FORM,
    FOUND,
    PIXEL,
    SCHEMA,
    json_body,
)
from reasonseg.serving.requests import (
    Ask,
    Limits,
    Segment,
    TooLarge,
    aside,
    body_of,
    form_of,
    from_json,
    parsed,
    picture_of,
    query_of,
    references_of,
)
from reasonseg.serving.session import Session
from reasonseg.structures.answer import Answer

log = logging.getLogger("reasonseg.serving")
GRACE = 1.0  # seconds a late answer is still waited for
# answered with the token only; the page asks for it itself
GUARDED = (
    "/v1/",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/redoc",
)


class Failure(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        self.response = JSONResponse({"error": message}, status, headers)


def make_app(
    segmenter,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    batch: int = 16,
    waiting: int = 64,
    engine: Any = None,
) -> FastAPI:
    """The app around a segmenter, or around an `engine` that stands for several; it can be mounted,
    or run with uvicorn.

    `token` is asked for as `Authorization: Bearer ...`; `batch` and `waiting` are the engine's.
    """
    limits, conversations = limits or Limits(), Conversations()
    metrics = Metrics(lambda: engine.depth, lambda: len(conversations))
    if engine is None:
        engine = Engine(segmenter, batch=batch, waiting=waiting)
    engine.observe = metrics.observe

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="reasonseg",
        version=__version__,
        summary="Words, examples, or both into image masks.",
        lifespan=lifespan,
    )
    app.state.engine, app.state.conversations, app.state.limits = engine, conversations, limits
    _add_guard(app, metrics, limits, token)
    _add_status(app, metrics, engine)
    _add_segment(app, engine, limits)
    _add_sessions(app, engine, conversations, limits)
    return app


def _add_guard(app: FastAPI, metrics: Metrics, limits: Limits, token: str | None) -> None:
    """Around every request: the token, errors in our words, and the metrics."""

    @app.middleware("http")
    async def guard(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        clock = asyncio.get_running_loop().time
        began, route = clock(), request.scope
        if (
            token is not None
            and _path(request).startswith(GUARDED)
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
        return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)


def _path(request: Request) -> str:
    """The path below the place where the app is mounted."""
    path, root = request.scope["path"], request.scope.get("root_path", "")
    return path.removeprefix(root) if root else path


def _allowed(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def _add_status(app: FastAPI, metrics: Metrics, engine: Engine) -> None:
    @app.get("/healthz", tags=["status"])
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["status"],
        responses={503: {"description": "stopping, or the model's thread is gone"}},
    )
    async def readyz() -> Response:
        """Questions are taken."""
        ready = engine.open and engine.alive
        return JSONResponse(
            {"status": "ready" if ready else "stopping", "waiting": engine.depth},
            200 if ready else 503,
        )

    @app.get("/metrics", tags=["status"], response_class=Response)
    async def shown() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


@asynccontextmanager
async def mistakes() -> AsyncIterator[None]:
    """Turns what goes wrong while a request is read or answered into an answer."""
    try:
        yield
    except InputError as error:
        raise Failure(422, " ".join(str(error).split())) from None
    except TooLarge:
        raise Failure(413, "the body is larger than this server reads") from None
    except Busy as error:
        raise Failure(503, str(error), {"Retry-After": str(max(round(error.retry), 1))}) from None
    except Late:
        raise Failure(504, "the answer was not ready in time") from None


async def tree_of(request: Request, limits: Limits) -> Any:
    """The plain values of a request, multipart or JSON, read within the time allowed."""
    try:
        async with asyncio.timeout(limits.seconds):
            body = await body_of(request, limits)
    except TimeoutError:
        raise Failure(408, "the body came too slowly") from None
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await form_of(request, body)
    return await aside(from_json, body)


async def answer_of(
    request: Request, engine: Engine, query, limits: Limits, options: dict, on_text=None
) -> Answer:
    """The model's answer. A client that goes away takes its request out of the queue."""
    job = engine.submit(query, timeout=limits.seconds, on_text=on_text, **options)
    loop, ready = asyncio.get_running_loop(), asyncio.Event()

    def done(_: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(ready.set)

    # asyncio.wrap_future would keep the answer until the garbage collector comes by
    job.answer.add_done_callback(done)
    try:
        while True:
            try:
                await asyncio.wait_for(ready.wait(), 0.5)
            except TimeoutError:
                if time.monotonic() > job.deadline + GRACE:
                    raise Late("the answer took too long") from None
                if await request.is_disconnected():
                    raise Failure(499, "the client went away") from None
            else:
                return job.answer.result()
    finally:
        job.answer.cancel()  # does nothing to what is done
        del job  # an error that is raised holds this frame, which would hold the error


def _add_segment(app: FastAPI, engine: Engine, limits: Limits) -> None:
    content = {
        "application/json": {"schema": SCHEMA, "example": EXAMPLE},
        "multipart/form-data": {"schema": FORM},
    }
    body = {"requestBody": {"required": True, "content": content}}
    ok = {
        200: {
            "description": "the answer",
            "content": {"application/json": {"example": FOUND}, "image/png": {}},
        }
    }

    @app.post(
        "/v1/segment",
        tags=["segment"],
        openapi_extra=body,
        responses={**ok, **ERRORS},
        response_class=Response,
    )
    async def segment(request: Request) -> Response:
        """Masks of what is asked about a picture; with `Accept: image/png` the picture with its
        masks drawn on it.
        """
        async with mistakes():
            asked = parsed(Segment, await tree_of(request, limits))
            query = await aside(query_of, asked, limits)
            answer = await answer_of(request, engine, query, limits, asked.options())
        if "image/png" in request.headers.get("accept", ""):
            return Response(await aside(_png, answer), media_type="image/png")
        return await aside(lambda: JSONResponse(answer.to_dict()))

    build = app.openapi

    def openapi() -> dict[str, Any]:
        schema = build()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(DEFINITIONS)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _png(answer: Answer) -> bytes:
    file = io.BytesIO()
    answer.overlay().save(file, format="PNG")
    return file.getvalue()


class Asking(Ask):
    """A question in a conversation; its places correct mask `correct` of the last answer,
    `image` changes the picture.
    """

    image: str | bytes | None = None
    correct: int | None = None


def _add_sessions(
    app: FastAPI, engine: Engine, conversations: Conversations, limits: Limits
) -> None:
    tags: list[Any] = ["conversations"]
    picture = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}}
    question = Ask.model_json_schema(ref_template="#/components/schemas/{model}")
    question.pop("$defs", None)
    start, ask = json_body(picture, {"image": PIXEL}), json_body(question, {"text": "the cup"})

    @app.post(
        "/v1/sessions",
        tags=tags,
        status_code=201,
        openapi_extra=start,
        responses=ERRORS,
        response_class=Response,
    )
    async def opened(request: Request) -> Response:
        """Starts a conversation about a picture."""
        async with mistakes():
            tree = await tree_of(request, limits)
            if not isinstance(tree, dict) or not isinstance(tree.get("image"), str | bytes):
                raise InputError("image: send base64 of an image file, or a multipart file")
            image = await aside(picture_of, tree["image"], limits)
            return JSONResponse({"id": conversations.open(Session(engine.segmenter, image))}, 201)

    @app.post(
        "/v1/sessions/{name}/ask",
        tags=tags,
        openapi_extra=ask,
        responses=ERRORS | {404: {}},
        response_class=Response,
    )
    async def asked(name: str, request: Request) -> Response:
        """The next question: server-sent events, `text` as it grows, then `answer` (or `error`)."""
        found = conversations.find(name)
        if found is None:
            raise Failure(404, "there is no such conversation (any more)")
        async with mistakes():
            asking = parsed(Asking, await tree_of(request, limits))
            image = await aside(picture_of, asking.image, limits) if asking.image else None
            shown = await aside(references_of, asking.references, limits)
        return StreamingResponse(
            _told(request, engine, found, asking, image, shown, limits),
            media_type="text/event-stream",
        )

    @app.delete(
        "/v1/sessions/{name}",
        tags=tags,
        status_code=204,
        responses={404: {}},
        response_class=Response,
    )
    async def closed(name: str) -> Response:
        """Ends a conversation."""
        if not conversations.close(name):
            raise Failure(404, "there is no such conversation (any more)")
        return Response(status_code=204)


async def _told(
    request: Request, engine: Engine, found, asking: Asking, image, shown, limits: Limits
) -> AsyncIterator[str]:
    """The events of one turn; the turns of a conversation take place one after another."""
    said: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def turn() -> Answer:
        async with mistakes(), found.lock:
            session: Session = found.session
            trial = session.copy()  # what cannot be answered changes nothing
            if image is not None:
                trial.look(image)
            for reference in shown:
                trial.show(reference)
            if asking.correct is not None:
                query, clicks = trial.correction(asking.clicks(), asking.boxes, asking.correct)
                drawn = await answer_of(request, engine, query, limits, asking.options())
                session.take(trial)
                return session.corrected(query, clicks, asking.correct, drawn)
            query = trial.query(asking.text, asking.clicks(), asking.boxes)
            answer = await answer_of(
                request,
                engine,
                query,
                limits,
                asking.options(),
                lambda text: loop.call_soon_threadsafe(said.put_nowait, text),
            )
            session.take(trial)
            return session.keep(query, answer)

    task = asyncio.ensure_future(turn())
    task.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (text := await said.get()) is not None:
            yield _event("text", {"text": text})
        yield _event("answer", await aside(task.result().to_dict))
    except Failure as failure:
        yield _event("error", json.loads(bytes(failure.response.body)))
    except Exception as error:
        log.error("a turn failed", exc_info=error)
        yield _event("error", {"error": "something went wrong here; the server's log says what"})
    finally:
        task.cancel()


def _event(kind: str, data: dict) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
