"""The fields of requests, and the queries that they become.

Limits are checked before anything is decoded. Paths, URLs and pickles are never read.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from reasonseg.errors import InputError
from reasonseg.serving.bodies import MAX_REFERENCES, decoded
from reasonseg.serving.engine import Late
from reasonseg.serving.limits import DECODING, Share
from reasonseg.structures.images import open_image, read_image, read_mask
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

    def measure(self, data: bytes, name: str, channels: int = 3) -> None:
        """Takes the pixels of a file from the budget; those of a mask (1 channel) count a third.

        Only its header is read.
        """
        with open_image(data, self.limit, name, decode=False) as picture:
            self.share.take_pixels(picture.width * picture.height * channels // 3)

    def image(self, value: str | bytes, name: str = "image") -> np.ndarray:
        """The image of a field, uint8 RGB `[h, w, 3]`.

        Raises `InputError` where it is not valid, `Busy` and `Late`.
        """
        data = decoded(value, name)
        self.measure(data, name)
        return self._decoded(read_image, data, name)

    def references(self, references: list[ReferenceIn]) -> list[Reference]:
        """The references of a request. Raises `InputError` naming the one that is not valid."""
        files = []
        for i, one in enumerate(references):
            for field, value, channels in (("image", one.image, 3), ("mask", one.mask, 1)):
                name = f"references.{i}.{field}"
                files.append((name, decoded(value, name)))
                self.measure(files[-1][1], name, channels)
        read = []
        for one, (image_file, mask_file) in zip(
            references, zip(files[::2], files[1::2], strict=True), strict=True
        ):
            image = self._decoded(read_image, image_file[1], image_file[0])
            mask = self._decoded(read_mask, mask_file[1], mask_file[0])
            if mask.shape != image.shape[:2]:
                raise InputError(
                    f"{mask_file[0]} is {mask.shape[0]}x{mask.shape[1]}, its image "
                    f"{image.shape[0]}x{image.shape[1]}; resize one"
                )
            read.append(Reference(image, mask=mask, label=one.label))
        return read

    def _decoded(self, reader: Any, data: bytes, name: str) -> np.ndarray:
        if not DECODING.acquire(timeout=max(self.until - time.monotonic(), 0)):
            raise Late("the deadline passed before the images were decoded")
        try:
            return reader(data, self.limit, name)
        finally:
            DECODING.release()


def query_of(asked: Segment, share: Share, until: float) -> Query:
    """The query of a request; its images are decoded.

    Raises `InputError` where it is not valid, `Busy` and `Late`.
    """
    pictures = Pictures(share, until)
    image = pictures.image(asked.image)
    shown = pictures.references(asked.references)
    return Query(image, asked.text, shown, asked.clicks(), asked.boxes)
