"""Checks what a browser sends to the page's events, before gradio reads it.

An event may name a file on the server: gradio copies such a file into its cache and serves it. Only
files that were uploaded through the page may be named, never another path, a link to one, or a URL;
and an upload with too many pixels is refused before it is decoded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reasonseg.errors import InputError
from reasonseg.serving.bodies import aside, body_of, form_items, from_json, path_of
from reasonseg.serving.engine import Busy
from reasonseg.serving.limits import Budget, Limits, TooLarge
from reasonseg.structures.images import open_image

FORM = 2**16  # bytes of a form around the files that it holds
OURS = "/v1/"  # the HTTP API, which has checks of its own
LOGIN = ("/login", "/login/")  # a form with a name and a password
UPLOAD = ("/gradio_api/upload", "/gradio_api/upload/")  # written to disk as it comes


class PageGuard:
    """An ASGI layer around the page.

    Args:
        app: The app with the page.
        uploads: The folder into which gradio writes uploads.
        budget: The budget of all requests, with the limits of one.
    """

    def __init__(self, app: ASGIApp, uploads: str | Path, budget: Budget):
        self.app, self.uploads, self.budget = app, Path(uploads), budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with `{"error": ...}` and 408, 413, 422 or 503."""
        if scope["type"] == "http" and path_of(scope) in UPLOAD:
            return await self.app(scope, _limited(receive, self.budget.limits), send)
        if not _is_event(scope):
            return await self.app(scope, receive, send)
        with self.budget.share() as share:
            request = Request(scope, receive)
            try:
                body = await body_of(request, self.budget.limits, share)
            except TooLarge:
                return await _refused("the request is too large", 413)(scope, receive, send)
            except TimeoutError:
                return await _refused("the body came too slowly", 408)(scope, receive, send)
            except Busy as busy:
                return await _refused(str(busy), 503)(scope, receive, send)
            except ClientDisconnect:
                return None
            problem = await aside(self.problem, body, request.headers)
            if problem is not None:
                return await _refused(problem, 422)(scope, receive, send)
            return await self.app(scope, _replayed(body, receive), send)

    def problem(self, body: bytes, headers: Headers | None = None) -> str | None:
        """What is wrong with the body of an event; None where it may pass."""
        try:
            if headers and _is_form(headers.get("content-type", "")):
                for _, value in asyncio.run(form_items(headers, body)):
                    if isinstance(value, bytes):
                        self._measure(value)
                return None
            tree = from_json(body)
        except InputError as error:
            return str(error)
        for path in _paths(tree):
            if not isinstance(path, str) or not self._uploaded(path):
                return "a file was named that was not uploaded here; upload it again"
            try:
                self._measure(path)
            except InputError as error:
                return str(error).replace(path, "the image")
        return None

    def _measure(self, source: str | bytes) -> None:
        """Raises `InputError` where a file is no image, or has too many pixels."""
        with open_image(source, self.budget.limits.pixels, "the image", decode=False):
            pass

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


def _is_event(scope: Scope) -> bool:
    """Whether a request calls an event: a POST to the page, uploads and the login left out."""
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
        return False
    path = path_of(scope)
    return not path.startswith(OURS) and path not in LOGIN and path not in UPLOAD


def _is_form(kind: str) -> bool:
    return kind.lower().startswith("multipart/form-data")


def _paths(tree: Any) -> Iterator[Any]:
    """Every file that a tree of JSON names, wherever it is: values under `path`, and those under
    `url` that gradio would read in their place (no path, or a `data:` address, which no upload is).
    """
    todo = [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
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
