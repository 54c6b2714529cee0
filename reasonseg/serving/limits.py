"""What one request may hold, and what all requests that are under way may hold together."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from reasonseg.errors import InputError
from reasonseg.serving.engine import Busy

PER_REQUEST = 2  # images of the largest size that one request may hold
TOGETHER = 4  # images, and bodies, of the largest size that all requests may hold
DECODING = threading.BoundedSemaphore(2)  # images decoded at the same time
RETRY = 2.0  # seconds after which a request that found no room may come again


@dataclass(frozen=True)
class Limits:
    """Limits of a request: bytes of the `body`, `pixels` of an image, and `seconds`.

    `seconds` holds for sending the request and again for decoding and answering it. The images of
    one request may have `PER_REQUEST * pixels` together. All requests under way may hold
    `TOGETHER * body` bytes and `TOGETHER * pixels` pixels.
    """

    body: int = 32 * 2**20
    pixels: int = 40_000_000
    seconds: float = 60.0

    @property
    def request_pixels(self) -> int:
        """The pixels of all images and masks of one request."""
        return PER_REQUEST * self.pixels


class TooLarge(Exception):
    """The body of a request is larger than the limit."""


class Budget:
    """The bytes of bodies and the pixels of images that all requests under way hold.

    Args:
        limits: The limits of one request.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.bytes = self.pixels = 0
        self.guard = threading.Lock()

    def share(self) -> Share:
        """The share of one request, to use as `with budget.share() as share`."""
        return Share(self)


class Share:
    """What one request holds of the budget of all requests; given back when it is closed."""

    def __init__(self, budget: Budget):
        self.budget, self.bytes, self.pixels = budget, 0, 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back."""
        with self.budget.guard:
            self.budget.bytes -= self.bytes
            self.budget.pixels -= self.pixels
            self.bytes = self.pixels = 0

    __del__ = close  # of a streamed answer that nobody came for

    def take_bytes(self, count: int) -> None:
        """Adds bytes of a body; a negative number gives them back.

        Raises `TooLarge` where the body is larger than one may be, and `Busy` where the bodies
        under way leave no room.
        """
        budget, limits = self.budget, self.budget.limits
        if self.bytes + count > limits.body:
            raise TooLarge
        with budget.guard:
            if count > 0 and budget.bytes + count > TOGETHER * limits.body:
                raise Busy(RETRY)
            budget.bytes += count
            self.bytes += count

    def take_pixels(self, count: int) -> None:
        """Adds pixels of images, before they are decoded.

        Raises `InputError` where one request asks for too many, and `Busy` where the requests under
        way leave no room.
        """
        budget, limits = self.budget, self.budget.limits
        if self.pixels + count > limits.request_pixels:
            raise InputError(
                f"the images and masks of the request have {(self.pixels + count) / 1e6:.1f} "
                f"million pixels together, more than the {limits.request_pixels / 1e6:g} million "
                "that one request may hold; make them smaller"
            )
        with budget.guard:
            if budget.pixels + count > TOGETHER * limits.pixels:
                raise Busy(RETRY)
            budget.pixels += count
            self.pixels += count
