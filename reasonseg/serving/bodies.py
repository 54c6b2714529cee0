"""Reads the bodies of requests: JSON, forms, and base64 of files.

Bodies are read as they come, up to their limits. All else runs in threads, so that no body holds up
the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from starlette.datastructures import Headers, UploadFile
from starlette.requests import Request
from starlette.types import Scope

from reasonseg.errors import InputError
from reasonseg.serving.engine import Busy, Late
from reasonseg.serving.limits import Limits, Share, TooLarge

T = TypeVar("T")
MAX_REFERENCES = 16
PART = 64 * 2**10  # bytes of a form field that is no file
CHUNK = 256 * 2**10  # bytes of a form that are read at once
# parsing holds the interpreter: these bound its time to about 0.2 s
MAX_VALUES = 100_000  # values, keys and brackets of a JSON body
MAX_ESCAPES = 1_000_000  # backslashes; some clients write each / of base64 as \/
READERS = anyio.CapacityLimiter(4)  # bodies read in parallel


def path_of(scope: Scope) -> str:
    """The path of a request, relative to where the app is mounted."""
    path, root = scope["path"], scope.get("root_path", "")
    return path.removeprefix(root) if root else path


async def aside(function: Callable[..., T], *values: Any) -> T:
    """The result of a function, run in a thread so that it does not block the event loop.

    A mistake in the request is raised again without its traceback: its frames would hold the body
    and the images until the next garbage collection.
    """

    def run() -> tuple[Any, Exception | None]:
        try:
            return function(*values), None
        except (InputError, Busy, Late, TooLarge) as mistake:
            forget(mistake)
            return None, mistake

    found, mistake = await anyio.to_thread.run_sync(run, limiter=READERS)
    if mistake is not None:
        raise mistake
    return found


def forget(error: BaseException) -> None:
    """Removes the frames that an error holds, and with them what was read for it."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


async def body_of(request: Request, limits: Limits, share: Share) -> bytes:
    """The body of a request; its bytes are taken from the budget of all requests.

    Raises `TooLarge` as soon as it is known to be too large, `Busy` where other bodies leave no
    room, and `TimeoutError` where it takes more than `limits.seconds`.
    """
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > limits.body:
        raise TooLarge
    body = bytearray()
    async with asyncio.timeout(limits.seconds):
        async for chunk in request.stream():
            share.take_bytes(len(chunk))
            body += chunk
    return bytes(body)


def from_json(body: bytes, name: str = "the body") -> Any:
    """The values of JSON; errors call it `name`.

    Raises `InputError` where it is not valid, or has more than `MAX_VALUES` values.
    """
    values = sum(body.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > MAX_VALUES or body.count(b"\\") > MAX_ESCAPES:
        raise InputError(
            f"{name} has more than {MAX_VALUES} values or {MAX_ESCAPES} escaped characters; "
            "send fewer"
        )
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {str(error)[:120]}") from None


def from_form(headers: Headers, body: bytes, until: float | None = None) -> dict[str, Any]:
    """A multipart body as the values of an equal JSON body, with files as bytes.

    `ref_image`, `ref_mask` and `ref_label` are paired in order. Runs its own event loop, so that it
    can be called in a thread; `until` is a time of `time.monotonic`.

    Raises:
        InputError: The body is malformed.
        Late: It is not read `until` then.
    """
    items = asyncio.run(form_items(headers, body, until))
    tree: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {"image": [], "ref_image": [], "ref_mask": []}
    labels: list[str] = []
    for name, value in items:
        if isinstance(value, bytes):
            if name not in files:
                raise InputError(f"{name}: no such file field; there are {', '.join(files)}")
            files[name].append(value)
        elif name == "ref_label":
            labels.append(value)
        elif name in files:
            raise InputError(f"{name}: send a file, not text")
        elif name in tree:
            raise InputError(f"{name}: send it once")
        elif name in ("points", "boxes"):
            tree[name] = from_json(value.encode("utf-8", "replace"), name)
        else:
            tree[name] = value
    return {**tree, **_files(files, labels)}


async def form_items(
    headers: Headers, body: bytes, until: float | None = None
) -> list[tuple[str, str | bytes]]:
    """(name, text or bytes of a file) of each part of a multipart body, in order.

    Arguments and errors are those of `from_form`.
    """
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream():
        for start in range(0, len(body), CHUNK):
            if until is not None and time.monotonic() > until:
                raise Late("the deadline passed while the form was read")
            yield body[start : start + CHUNK]

    try:
        form = await MultiPartParser(
            headers, stream(), max_files=2 * MAX_REFERENCES + 1, max_fields=64, max_part_size=PART
        ).parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        message = getattr(error, "message", "") or "a form cannot be read"
        raise InputError(f"the multipart body is malformed: {message}") from None
    items = [
        (name, value.file.read() if isinstance(value, UploadFile) else value)
        for name, value in form.multi_items()
    ]
    await form.close()
    return items


def _files(files: dict[str, list[bytes]], labels: list[str]) -> dict[str, Any]:
    if len(files["image"]) > 1:
        raise InputError(f"image: send one, not {len(files['image'])}")
    images, masks = files["ref_image"], files["ref_mask"]
    if len(images) != len(masks) or len(labels) > len(images):
        raise InputError(
            f"references: {len(images)} ref_image, {len(masks)} ref_mask, {len(labels)} "
            "ref_label; pair them in order"
        )
    pairs = zip(images, masks, [*labels, *[None] * len(images)], strict=False)
    tree: dict[str, Any] = {}
    if images:
        tree["references"] = [
            {"image": i, "mask": m, "label": label or None} for i, m, label in pairs
        ]
    if files["image"]:
        tree["image"] = files["image"][0]
    return tree


def decoded(value: str | bytes, name: str) -> bytes:
    """The bytes of a file from base64, or bytes as they are.

    A data URL is allowed, and so are line breaks, missing padding, and the URL-safe letters. Raises
    `InputError` naming the field `name` where it is not base64.
    """
    if isinstance(value, bytes):
        return value
    head, comma, _ = value[:200].partition(",")
    if comma and head.startswith("data:"):
        value = value[len(head) + 1 :]
    value = "".join(value.split()).rstrip("=")
    try:
        letters = value.encode("ascii").translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name}: not base64 of an image file") from None
