"""The HTTP API: single questions and conversations. /openapi.json describes fields and keys.

Every error is answered as `{"error": "..."}`: 401 missing or wrong token, 404 no such conversation,
408 the request took too long to send, 413 too large, 422 not valid, 503 too many requests wait
(with Retry-After), 504 not answered in time. No message holds a path or a traceback.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from reasonseg import __version__
from reasonseg.errors import InputError
from reasonseg.serving.bodies import aside, body_of, forget, from_form, from_json
from reasonseg.serving.conversations import Conversations
from reasonseg.serving.engine import Busy, Engine, Late
from reasonseg.serving.guard import Failure, add_guard, add_refusals, add_status
from reasonseg.serving.limits import Budget, Limits, Share, TooLarge
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
from reasonseg.serving.requests import Ask, Asking, Pictures, Segment, Start, parsed, query_of
from reasonseg.serving.session import Session
from reasonseg.structures.answer import Answer

log = logging.getLogger("reasonseg.serving")
GRACE = 1.0  # seconds to wait for an answer after its deadline


def make_app(
    segmenter,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    batch: int = 16,
    waiting: int = 64,
    engine: Any = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The HTTP app of a segmenter, to mount in another app or to run with uvicorn.

    With an `engine`, such as one that stands for several replicas, `segmenter` is not used. Clients
    send `token` as `Authorization: Bearer ...`; None means no token. `batch` is the largest batch
    and `waiting` the largest number of waiting queries of the engine. Pages of the `origins`, such
    as `https://example.org`, may call the API (CORS).
    """
    budget, conversations = Budget(limits or Limits()), Conversations()
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
    app.state.engine, app.state.conversations, app.state.budget = engine, conversations, budget
    add_guard(app, metrics, token)
    if origins:  # around the guard: a browser asks without the token first
        allowed: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), **allowed)
    add_status(app, metrics, engine)
    _add_segment(app, engine, budget)
    _add_sessions(app, engine, conversations, budget, metrics)
    add_refusals(app)
    return app


@asynccontextmanager
async def mistakes() -> AsyncIterator[None]:
    """Turns known errors, while a request is read or answered, into a `Failure`."""
    try:
        yield
    except ClientDisconnect:
        raise Failure(499, "the client disconnected") from None
    except (InputError, TooLarge, Busy, Late) as error:
        forget(error)
        if isinstance(error, InputError):
            raise Failure(422, " ".join(str(error).split())) from None
        if isinstance(error, TooLarge):
            raise Failure(413, "the body is larger than this server reads") from None
        if isinstance(error, Late):
            raise Failure(504, "the answer was not ready in time") from None
        again = {"Retry-After": str(max(round(error.retry), 1))}
        raise Failure(503, str(error), again) from None


async def tree_of(request: Request, share: Share) -> tuple[Any, float]:
    """The plain values of a multipart or JSON request, and the deadline of its answer.

    The deadline is a time of `time.monotonic`. Raises `Failure` 408 where the body takes more than
    the seconds that a request may take.
    """
    limits = share.budget.limits
    try:
        body = await body_of(request, limits, share)
    except TimeoutError:
        raise Failure(408, "the body came too slowly") from None
    until = time.monotonic() + limits.seconds
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await aside(from_form, request.headers, body, until), until
    return await aside(from_json, body), until


async def answer_of(
    request: Request, engine: Engine, query, until: float, options: dict, on_text=None
) -> Answer:
    """The answer of the model. A request whose client disconnects is removed from the queue.

    `until` is its deadline, a time of `time.monotonic`. Raises `Busy` where the queue is full,
    `Late` where the answer takes too long, and `Failure` 499 where the client disconnects.
    """
    job = engine.submit(query, timeout=until - time.monotonic(), on_text=on_text, **options)
    loop, ready = asyncio.get_running_loop(), asyncio.Event()

    def done(_: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(ready.set)

    # asyncio.wrap_future would keep the answer in memory until the next garbage collection
    job.answer.add_done_callback(done)
    try:
        while True:
            try:
                await asyncio.wait_for(ready.wait(), 0.5)
            except TimeoutError:
                if time.monotonic() > job.deadline + GRACE:
                    raise Late("the answer took too long") from None
                if await request.is_disconnected():
                    raise Failure(499, "the client disconnected") from None
            else:
                return job.answer.result()
    finally:
        job.drop()  # does nothing where the answer is done
        del job  # a raised error holds this frame, which would hold the error: a cycle


async def _read(request: Request, share: Share) -> tuple[Any, dict[str, Any], float]:
    """The (query, options, deadline) of a request; its body is let go."""
    tree, until = await tree_of(request, share)
    asked = await aside(parsed, Segment, tree)
    query = await aside(query_of, asked, share, until)
    share.take_bytes(-share.bytes)
    return query, asked.options(), until


def _add_segment(app: FastAPI, engine: Engine, budget: Budget) -> None:
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
        """Answers a question about an image with masks.

        With `Accept: image/png` the response is the image with the masks drawn on it.
        """
        async with mistakes():
            with budget.share() as share:
                query, options, until = await _read(request, share)
                answer = await answer_of(request, engine, query, until, options)
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


def _add_sessions(
    app: FastAPI, engine: Engine, conversations: Conversations, budget: Budget, metrics: Metrics
) -> None:
    tags: list[Any] = ["conversations"]
    picture = Start.model_json_schema()
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
        """Starts a conversation about an image and returns its id."""
        async with mistakes():
            with budget.share() as share:
                tree, until = await tree_of(request, share)
                start = await aside(parsed, Start, tree)
                image = await aside(Pictures(share, until).image, start.image)
            return JSONResponse({"id": conversations.open(Session(engine.segmenter, image))}, 201)

    @app.post(
        "/v1/sessions/{name}/ask",
        tags=tags,
        openapi_extra=ask,
        responses=ERRORS | {404: {}},
        response_class=Response,
    )
    async def asked(name: str, request: Request) -> Response:
        """Asks the next question: server-sent events `text`, then `answer` (or `error`)."""
        found = conversations.find(name)
        if found is None:
            raise Failure(404, "there is no such conversation (any more)")
        share = budget.share()
        asking, image, shown, until = await _read_turn(request, share)
        turn = _turn(request, engine, found, asking, image, shown, until)
        told = _told(turn, metrics, share)
        return StreamingResponse(told, media_type="text/event-stream")

    @app.delete(
        "/v1/sessions/{name}",
        tags=tags,
        status_code=204,
        responses={404: {}},
        response_class=Response,
    )
    async def closed(name: str) -> Response:
        """Deletes a conversation."""
        if not conversations.close(name):
            raise Failure(404, "there is no such conversation (any more)")
        return Response(status_code=204)


async def _read_turn(request: Request, share: Share) -> tuple[Asking, Any, list, float]:
    """The (question, image or None, references, deadline) of a turn; its body is let go.

    Where it cannot be read, its share is closed.
    """
    try:
        async with mistakes():
            tree, until = await tree_of(request, share)
            asking = await aside(parsed, Asking, tree)
            pictures = Pictures(share, until)
            image, shown = await aside(pictures.read, asking.image, asking.references)
            asking.image, asking.references = None, []
            share.take_bytes(-share.bytes)
            return asking, image, shown, until
    except BaseException:
        share.close()
        raise


def _turn(
    request: Request, engine: Engine, found, asking: Asking, image, shown, until: float
) -> Callable[[Callable[[str], None]], Awaitable[Answer]]:
    """One turn of a conversation, as a function of `on_text`; turns run one after another."""

    async def turn(on_text: Callable[[str], None]) -> Answer:
        async with mistakes(), found.lock:
            session: Session = found.session
            trial = session.copy()  # a turn that fails changes nothing
            if image is not None:
                trial.look(image)
            for reference in shown:
                trial.show(reference)
            options = asking.options()
            if asking.correct is not None:
                query, clicks = trial.correction(asking.clicks(), asking.boxes, asking.correct)
                drawn = await answer_of(request, engine, query, until, options)
                session.take(trial)
                return session.corrected(query, clicks, asking.correct, drawn)
            query = trial.query(asking.text, asking.clicks(), asking.boxes)
            answer = await answer_of(request, engine, query, until, options, on_text)
            session.take(trial)
            return session.keep(query, answer)

    return turn


async def _told(
    turn: Callable[[Callable[[str], None]], Awaitable[Answer]], metrics: Metrics, share: Share
) -> AsyncIterator[str]:
    """The server-sent events of one turn; the share of its request is closed at the end."""
    said: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(
        turn(lambda text: (loop.call_soon_threadsafe(said.put_nowait, text), None)[1])
    )
    task.add_done_callback(lambda _: said.put_nowait(None))
    status = 499  # where the client disconnects
    try:
        while (text := await said.get()) is not None:
            yield _event("text", {"text": text})
        answer = _event("answer", await aside(task.result().to_dict))
        status = 200
        yield answer
    except Failure as failure:
        forget(failure)
        status = failure.response.status_code
        yield _event("error", json.loads(bytes(failure.response.body)))
    except Exception as error:
        status = 500
        log.error("a turn failed", exc_info=error)
        yield _event("error", {"error": "internal error; see the log of the server"})
    finally:
        metrics.turns.labels(status).inc()
        share.close()
        task.cancel()


def _event(kind: str, data: dict) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
