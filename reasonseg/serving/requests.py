"""The fields of requests, and the queries that they become.

Limits are checked before anything is decoded. Paths, URLs and pickles are never read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from reasonseg.errors import InputError
from reasonseg.serving.bodies import MAX_REFERENCES, decoded
from reasonseg.serving.engine import Late
from reasonseg.serving.limits import DECODING, Share
from reasonseg.structures.images import open_image, read_image
from reasonseg.structures.mask_values import read_mask
from reasonseg.structures.query import Point, Query, Reference

MAX_PLACES = 256  # points or boxes

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


class Start(BaseModel):
    """The start of a conversation."""

    model_config = ConfigDict(extra="forbid")
    image: File = Field(description="base64 of an image file")


class Asking(Ask):
    """A question in a conversation.

    With `correct`, its points and boxes correct that mask of the last answer. `image` changes the
    image of the conversation.
    """

    image: File | None = None
    correct: int | None = None


def parsed(cls: type[BaseModel], tree: Any) -> Any:
    """A pydantic model from plain values.

    Raises `InputError` naming the first field that is not valid.
    """
    if isinstance(tree, dict):  # pydantic would make one error for each unknown key
        unknown = next((key for key in tree if key not in cls.model_fields), None)
        if unknown is not None:
            raise InputError(
                f"{unknown[:80]}: no such field; there are {', '.join(cls.model_fields)}"
            )
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(p) for p in first["loc"])[:80] or "body"
        raise InputError(f"{place}: {first['msg']}") from None


class Pictures:
    """The image files of a request: measured together, then decoded one after another.

    Args:
        share: What the request holds of the budget of all requests.
        until: The deadline, a time of `time.monotonic`.
    """

    def __init__(self, share: Share, until: float):
        self.share, self.until = share, until
        self.limit = share.budget.limits.pixels

    def measured(self, value: str | bytes, name: str, channels: int = 3) -> tuple[bytes, str]:
        """(bytes, name) of a file; its pixels are taken from the budget, a third for a mask.

        Only its header is read. Raises `InputError` where it is no image, or too large, and `Busy`.
        """
        data = decoded(value, name)
        with self._decoding(), open_image(data, self.limit, name, decode=False) as picture:
            self.share.take_pixels(picture.width * picture.height * channels // 3)
        return data, name

    def image(self, image: str | bytes, name: str = "image") -> np.ndarray:
        """The image of a field, uint8 RGB `[h, w, 3]`. Raises as `read` does."""
        return self._decoded(read_image, *self.measured(image, name))

    def read(
        self, image: str | bytes | None, references: list[ReferenceIn]
    ) -> tuple[np.ndarray | None, list[Reference]]:
        """The image, uint8 RGB `[h, w, 3]` or None, and the references of a request.

        All files are measured before any is decoded. Raises `InputError` naming the field that is
        not valid, `Busy` and `Late`.
        """
        file = self.measured(image, "image") if image else None
        files = [
            (
                self.measured(one.image, f"references.{i}.image"),
                self.measured(one.mask, f"references.{i}.mask", channels=1),
            )
            for i, one in enumerate(references)
        ]
        shown = []
        for one, (image_file, mask_file) in zip(references, files, strict=True):
            picture = self._decoded(read_image, *image_file)
            mask = self._decoded(read_mask, *mask_file)
            if mask.shape != picture.shape[:2]:
                raise InputError(
                    f"{mask_file[1]} is {mask.shape[0]}x{mask.shape[1]}, its image "
                    f"{picture.shape[0]}x{picture.shape[1]}; resize one"
                )
            shown.append(Reference(picture, mask=mask, label=one.label))
        return self._decoded(read_image, *file) if file else None, shown

    def _decoded(self, reader: Any, data: bytes, name: str) -> np.ndarray:
        with self._decoding():
            return reader(data, self.limit, name)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """A turn to open images. Raises `Late` where none comes before the deadline."""
        if not DECODING.acquire(timeout=max(self.until - time.monotonic(), 0)):
            raise Late("the deadline passed before the images were decoded")
        try:
            yield
        finally:
            DECODING.release()


def query_of(asked: Segment, share: Share, until: float) -> Query:
    """The query of a request; its images are decoded.

    Raises `InputError` where it is not valid, `Busy` and `Late`.
    """
    image, shown = Pictures(share, until).read(asked.image, asked.references)
    if image is None:
        raise InputError("image: send base64 of an image file, or a multipart file")
    return Query(image, asked.text, shown, asked.clicks(), asked.boxes)
