"""Names of shapes for annotations, such as `Float[Tensor, "n h w"]`.

They are checked while tests run, never in production. jaxtyping and beartype do the checks; only
tests need them. Without them the names mean nothing, since annotations are not evaluated.

Axis letters: b images, n masks, k tokens per mask, d width of a token, t patches or text length, h
and w pixels, s side of a square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ImportError:
        Bool = Float = Int = UInt8 = Any

__all__ = ["Bool", "Float", "Int", "UInt8"]
