"""Outlines of masks, as polygons without holes.

An outline runs through the centres of the outermost pixels, so tools that fill a polygon together
with its outline (OpenCV, LabelMe, this package) draw the same mask again. A hole is joined to its
outline by a bridge, a line that is walked there and back inside of the mask.
"""

from __future__ import annotations

import numpy as np

CLOSE = 1e-3  # how far outside of a pixel's centre contours are searched

Point = tuple[int, int]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outline of each connected part of a mask (bool `[h, w]`), the largest first.

    Each is int64 `[p, 2]` (x, y) in pixels, without the first point again at the end; at least
    three points, which lie on a line for parts of one pixel's width. Parts that touch at a corner
    are parts of their own.
    """
    import contourpy

    if not mask.any():
        return []
    padded = np.pad(mask.astype(np.float64), 1)
    maker = contourpy.contour_generator(z=padded, fill_type="OuterOffset")
    rings, starts = maker.filled(1 - CLOSE, 2.0)  # type: ignore[misc]
    found = []
    for points, offsets in zip(rings, starts, strict=True):
        if points is None or offsets is None:
            continue
        whole = np.rint(points).astype(np.int64) - 1
        parts = [whole[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        found.append(_shortened(_bridged([_steps(part) for part in parts], mask)))
    return sorted(found, key=area, reverse=True)


def area(points: np.ndarray) -> float:
    """Area of a polygon `[p, 2]` in square pixels (shoelace formula)."""
    x, y = points.T.astype(float)
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _steps(ring: np.ndarray) -> list[Point]:
    """A ring as points, each once in a row, without the first again at the end."""
    points = [tuple(int(v) for v in p) for p in ring]
    kept = [p for p, before in zip(points, [None, *points], strict=False) if p != before]
    return kept[:-1] if len(kept) > 1 and kept[0] == kept[-1] else kept  # type: ignore[return-value]


def _bridged(rings: list[list[Point]], mask: np.ndarray) -> list[Point]:
    """One ring from an outer ring and those of its holes, from left to right.

    From the leftmost point of a hole, the pixels to its left belong to the mask up to the outline
    or to a hole that is joined already. There the bridge begins.
    """
    outer, *holes = rings
    points, following = list(outer), [*range(1, len(outer)), 0]
    at = {point: k for k, point in enumerate(points)}
    for hole in sorted(holes, key=min):
        first = min(range(len(hole)), key=lambda k: hole[k])
        x, y = hole[first]
        row = mask[y, : x + 1]
        gaps = np.flatnonzero(~row)
        start = at[(int(gaps[-1]) + 1 if len(gaps) else 0, y)]
        base, walk = len(points), [*hole[first:], *hole[: first + 1], points[start]]
        points += walk
        following += [*range(base + 1, base + len(walk)), following[start]]
        following[start] = base
        for k, point in enumerate(walk[:-1]):
            at.setdefault(point, base + k)
    walked, k = [], 0
    for _ in points:
        walked.append(points[k])
        k = following[k]
    return walked


def _shortened(points: list[Point]) -> np.ndarray:
    """A ring without the points in the middle of straight lines; at least three points."""
    ring = np.array(points, np.int64).reshape(-1, 2)
    if len(ring) > 2:
        before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
        straight = before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]
        onwards = (before * after).sum(1) > 0
        ring = ring[~(straight & onwards)]
    return np.concatenate([ring, np.repeat(ring[-1:], max(3 - len(ring), 0), 0)])
