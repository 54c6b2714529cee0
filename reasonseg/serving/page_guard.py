"""Checks what a browser sends to the page's events, before gradio reads it.

An event may name a file on the server: gradio copies such a file into its cache and serves it. Only
files that were uploaded through the page may be named, never another path, a link to one, or a URL;
and an upload with too many pixels is refused before it is decoded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reasonseg.errors import InputError
from reasonseg.serving.bodies import aside, body_of, form_items, from_json, path_of
from reasonseg.serving.engine import Busy
from reasonseg.serving.limits import Budget, Limits, Share, TooLarge
from reasonseg.structures.images import open_image

FORM = 2**16  # bytes of a form around the files that it holds
LOGIN = "/login"  # a form with a name and a password
UPLOAD = "/gradio_api/upload"  # written to disk as it comes
BLOBS = "/gradio_api/component_server"  # what was painted in the image editor
# the page itself calls no others
CALLED = (LOGIN, UPLOAD, BLOBS, *(f"/gradio_api/{n}" for n in ("queue/join", "reset", "cancel")))
STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat", "/gradio_api/upload_progress")
PAGE = ("/gradio_api", "/monitoring", LOGIN)  # all but these has checks of its own, or only reads
HIDDEN = ("/gradio_api/dev", "/monitoring", "/gradio_api/proxy")  # for people who write pages
EVENT, SMALL = 2**18, 2**16  # bytes of an event, whose files are uploaded before; of a login
MOST_STREAMS = 256  # open connections that wait for events
LAYERS, KEPT = 8, 16  # layers of a painted image, and images kept until their event comes
# fields of messages in a conversation that make gradio build parts of a page from them
BUILDING = ("component", "constructor_args")


class PageGuard:
    """An ASGI layer around the page.

    Args:
        app: The app with the page.
        uploads: The folder into which gradio writes uploads.
        budget: What the page's requests may hold together; not that of the API.
        editor: The image editor of the page, which keeps what was painted; None without one.
    """

    def __init__(self, app: ASGIApp, uploads: str | Path, budget: Budget, editor: Any = None):
        self.app, self.uploads, self.budget, self.editor = app, Path(uploads), budget, editor
        self.streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with `{"error": ...}` and 404, 408, 413, 422, 503."""
        path = path_of(scope).rstrip("/") if scope["type"] == "http" else ""
        if not path.startswith(PAGE):
            return await self.app(scope, receive, send)
        if path.startswith(HIDDEN):
            return await _refused("Not Found", 404)(scope, receive, send)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self._streamed(path, scope, receive, send)
        if path not in CALLED:
            return await _refused("Not Found", 404)(scope, receive, send)
        if path == UPLOAD:
            return await self.app(scope, _limited(receive, self.budget.limits), send)
        with self.budget.share() as share:
            answer = await self._checked(path, Request(scope, receive), share)
            if isinstance(answer, JSONResponse):
                return await answer(scope, receive, send)
            if answer is not None:
                await self.app(scope, _replayed(answer, receive), send)

    async def _streamed(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; of those that wait for events, at most `MOST_STREAMS` at a time."""
        if not path.startswith(STREAMS):
            return await self.app(scope, receive, send)
        if self.streams >= MOST_STREAMS:
            return await _refused("too many pages are open; try again", 503)(scope, receive, send)
        self.streams += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.streams -= 1

    async def _checked(
        self, path: str, request: Request, share: Share
    ) -> bytes | JSONResponse | None:
        """The body of an event that may pass, or the answer to one that may not."""
        limits = self.budget.limits
        most = {LOGIN: SMALL, BLOBS: limits.body}.get(path, EVENT)
        try:
            body = await body_of(request, replace(limits, body=min(most, limits.body)), share)
        except TooLarge:
            return _refused("the request is too large", 413)
        except TimeoutError:
            return _refused("the body came too slowly", 408)
        except Busy as busy:
            return _refused(str(busy), 503)
        except ClientDisconnect:
            return None
        problem = None
        if path == BLOBS:
            problem = await aside(self.painted, body, request.headers, share)
        elif path != LOGIN:
            problem = await aside(self.problem, body, share)
        return body if problem is None else _refused(problem, 422)

    def problem(self, body: bytes, share: Share) -> str | None:
        """What is wrong with the body of an event; None where it may pass."""
        try:
            tree = from_json(body)
            for path in _paths(tree):
                if not isinstance(path, str) or not self._uploaded(path):
                    return "a file was named that was not uploaded here; upload it again"
                try:
                    self._measure(path, share)
                except InputError as error:
                    return str(error).replace(path, "the image")
        except (InputError, Busy) as error:
            return str(error)
        return None

    def painted(self, body: bytes, headers: Headers, share: Share) -> str | None:
        """What is wrong with a part of a painted image; None where it may pass."""
        if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return "a painted image comes as a form"
        try:
            fields = dict(asyncio.run(form_items(headers, body)))
            files = [value for value in fields.values() if isinstance(value, bytes)]
            for value in files:
                self._measure(value, share)
        except (InputError, Busy) as error:
            return str(error)
        index = str(fields.get("index") or "null")
        if fields.get("fn_name") != "accept_blobs" or len(files) != 1 or "type" not in fields:
            return "this is no part of a painted image"
        if index != "null" and not (index.isdigit() and len(index) < 3 and int(index) < LAYERS):
            return f"a painted image has at most {LAYERS} layers"
        kept = getattr(self.editor, "blob_storage", {})
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)), None)
        return None

    def _measure(self, source: str | bytes, share: Share) -> None:
        """Takes the pixels of a file from the budget; it is decoded as often as it is named.

        Raises `InputError` where a file is no image, or has too many pixels, and `Busy`.
        """
        with open_image(source, self.budget.limits.pixels, "the image", decode=False) as picture:
            share.take_pixels(picture.width * picture.height)

    def _uploaded(self, path: str) -> bool:
        """Whether a path is a plain file in the folder of uploads, reached by no link."""
        file = Path(path)
        if not file.is_absolute() or ".." in file.parts:
            return False
        try:
            return file.is_file() and file.resolve() == file and self._inside(file)
        except (OSError, ValueError):
            return False

    def _inside(self, file: Path) -> bool:
        return file.is_relative_to(self.uploads.resolve())


def _paths(tree: Any) -> Iterator[Any]:
    """Every file that a tree of JSON names, wherever it is: values under `path`, and those under
    `url` that gradio would read in their place (no path, or a `data:` address, which no upload is).

    Raises `InputError` for a message that asks gradio to build a part of a page.
    """
    todo = [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if any(key in value for key in BUILDING):
                raise InputError("a message holds something other than text")
            if value.get("path") is not None:
                yield value["path"]
            url = value.get("url")
            if url is not None and (value.get("path") is None or str(url).startswith("data:")):
                yield url
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _refused(problem: str, status: int) -> JSONResponse:
    return JSONResponse({"error": problem, "detail": problem}, status)


def _limited(receive: Receive, limits: Limits) -> Receive:
    """A `receive` that ends where an upload is too large or too slow, as if the client had gone."""
    until, left = time.monotonic() + limits.seconds, limits.body + FORM

    async def next_part() -> Message:
        nonlocal left
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0)):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return next_part


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
