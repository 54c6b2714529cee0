"""Reads queries from multipart and JSON requests.

Limits are checked before anything is decoded. Paths, URLs and pickles are never read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import anyio
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Scope

from reasonseg.errors import InputError
from reasonseg.structures.images import read_image, read_mask
from reasonseg.structures.query import Point, Query, Reference

T = TypeVar("T")
MAX_REFERENCES = 16
MAX_PLACES = 256  # points or boxes
PART = 64 * 2**10  # bytes of a form field that is no file
READERS = anyio.CapacityLimiter(4)  # bodies and images decoded in parallel; bounds the memory


@dataclass(frozen=True)
class Limits:
    """Limits of a request: bytes of the `body`, `pixels` of an image, and `seconds`.

    `seconds` holds for sending the request and again for answering it.
    """

    body: int = 32 * 2**20
    pixels: int = 40_000_000
    seconds: float = 60.0


class TooLarge(Exception):
    """The body of a request is larger than the limit."""


# base64 text in JSON, bytes in forms
File = Annotated[str | bytes, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]


class ReferenceIn(BaseModel):
    """A reference image and its mask, as base64 of image files.

    Every pixel of the mask that is not black belongs to the object.
    """

    model_config = ConfigDict(extra="forbid")
    image: File = Field(description="base64 of an image file")
    mask: File = Field(description="base64 of a mask file, in the size of the image")
    label: str | None = Field(None, max_length=200)


class Ask(BaseModel):
    """A question without its image."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(
        "",
        max_length=20_000,
        description="the question; may be empty with points, boxes or references",
    )
    points: list[tuple[float, float] | tuple[float, float, int]] = Field(
        [], max_length=MAX_PLACES, description="x, y in pixels, and 1 on the object or 0 off it"
    )
    boxes: list[tuple[float, float, float, float]] = Field(
        [], max_length=MAX_PLACES, description="x0, y0, x1, y1 in pixels"
    )
    references: list[ReferenceIn] = Field([], max_length=MAX_REFERENCES)
    force_seg: bool = Field(False, description="always draw a mask")
    absent_threshold: float = Field(
        0.5, ge=0, le=1, description="share of <REJ> from which the answer is absent"
    )
    max_new_tokens: int | None = Field(None, ge=1, le=1024)

    def clicks(self) -> list[Point]:
        """The points with all three numbers; the third is 1 where the request leaves it out."""
        return [(p[0], p[1], p[2] if len(p) == 3 else 1) for p in self.points]

    def options(self) -> dict[str, Any]:
        """The options for `Segmenter.batch`."""
        return {
            "force_seg": self.force_seg,
            "absent_threshold": self.absent_threshold,
            "max_new_tokens": self.max_new_tokens,
        }


class Segment(Ask):
    """A question about an image."""

    image: File = Field(description="base64 of an image file")


def path_of(scope: Scope) -> str:
    """The path of a request, relative to where the app is mounted."""
    path, root = scope["path"], scope.get("root_path", "")
    return path.removeprefix(root) if root else path


async def aside(function: Callable[..., T], *values: Any) -> T:
    """The result of a function, run in a thread so that it does not block the event loop."""
    return await anyio.to_thread.run_sync(function, *values, limiter=READERS)


async def body_of(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises `TooLarge` as soon as it is known to be too large, and `TimeoutError` where it takes more
    than `limits.seconds`.
    """
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > limits.body:
        raise TooLarge
    chunks, size = [], 0
    async with asyncio.timeout(limits.seconds):
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body:
                raise TooLarge
            chunks.append(chunk)
    return b"".join(chunks)


def parsed(cls: type[BaseModel], tree: Any) -> Any:
    """A pydantic model from plain values.

    Raises `InputError` naming the first field that is not valid.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(p) for p in first["loc"])[:80] or "body"
        raise InputError(f"{place}: {first['msg']}") from None


def from_json(body: bytes) -> Any:
    """The values of a JSON body. Raises `InputError` where it is not valid."""
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON: {str(error)[:120]}") from None


async def form_of(request: Request, body: bytes) -> dict[str, Any]:
    """A multipart body as the values of an equal JSON body, with files as bytes.

    `ref_image`, `ref_mask` and `ref_label` are paired in order. Raises `InputError` where the body
    is malformed.
    """
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream():
        yield body

    try:
        form = await MultiPartParser(
            request.headers,
            stream(),
            max_files=2 * MAX_REFERENCES + 1,
            max_fields=64,
            max_part_size=PART,
        ).parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        message = getattr(error, "message", "") or "a form cannot be read"
        raise InputError(f"the multipart body is malformed: {message}") from None
    tree: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {"image": [], "ref_image": [], "ref_mask": []}
    labels: list[str] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in files:
                raise InputError(f"{name}: no such file field; there are {', '.join(files)}")
            files[name].append(await value.read())
        elif name == "ref_label":
            labels.append(value)
        elif name in files:
            raise InputError(f"{name}: send a file, not text")
        elif name in ("points", "boxes"):
            tree[name] = from_json(value.encode())
        else:
            tree[name] = value
    await form.close()
    return {**tree, **_files(files, labels)}


def _files(files: dict[str, list[bytes]], labels: list[str]) -> dict[str, Any]:
    if len(files["image"]) > 1:
        raise InputError(f"image: send one, not {len(files['image'])}")
    if len(files["ref_image"]) != len(files["ref_mask"]) or len(labels) > len(files["ref_image"]):
        counts = len(files["ref_image"]), len(files["ref_mask"]), len(labels)
        raise InputError(
            "references: {} ref_image, {} ref_mask, {} ref_label; pair them in order".format(
                *counts
            )
        )
    pairs = zip(
        files["ref_image"],
        files["ref_mask"],
        [*labels, *[None] * len(files["ref_image"])],
        strict=False,
    )
    tree: dict[str, Any] = {
        "references": [{"image": i, "mask": m, "label": label or None} for i, m, label in pairs]
    }
    if files["image"]:
        tree["image"] = files["image"][0]
    return tree


def decoded(value: str | bytes, name: str) -> bytes:
    """The bytes of a file from base64 (a data URL is allowed) or bytes.

    Raises `InputError` naming the field `name` where it is not base64.
    """
    if isinstance(value, bytes):
        return value
    head, comma, rest = value[:200].partition(",")
    if comma and head.startswith("data:"):
        value = value[len(head) + 1 :]
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name}: not base64 of an image file") from None


def picture_of(value: str | bytes, limits: Limits, name: str = "image") -> np.ndarray:
    """The image of a field, uint8 RGB `[h, w, 3]`. Raises `InputError` where it is not valid."""
    return read_image(decoded(value, name), limits.pixels, name)


def references_of(references: list, limits: Limits) -> list[Reference]:
    """The references of a request. Raises `InputError` naming the one that is not valid."""
    read = []
    for i, one in enumerate(references):
        name = f"references.{i}"
        image = picture_of(one.image, limits, f"{name}.image")
        mask = read_mask(decoded(one.mask, f"{name}.mask"), limits.pixels, f"{name}.mask")
        if mask.shape != image.shape[:2]:
            raise InputError(
                f"{name}.mask is {mask.shape[0]}x{mask.shape[1]}, its image "
                f"{image.shape[0]}x{image.shape[1]}; resize one"
            )
        read.append(Reference(image, mask=mask, label=one.label))
    return read


def query_of(asked: Segment, limits: Limits) -> Query:
    """The query of a request; its images are decoded. Raises `InputError` where not valid."""
    image = picture_of(asked.image, limits)
    return Query(
        image, asked.text, references_of(asked.references, limits), asked.clicks(), asked.boxes
    )
