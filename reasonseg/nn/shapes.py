"""Names for shapes in annotations: `Float[Tensor, "n h w"]`. Checked while tests run, never in production.

jaxtyping and beartype do the checking and are needed by tests alone; without them the names stand for nothing, since
annotations are not evaluated. Axis letters: b images, n masks, k tokens per mask, d width of a token, t patches or text
length, h and w pixels, s side of a square.
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
