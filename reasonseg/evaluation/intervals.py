"""95 % confidence intervals of scores, for questions that share images and for classes.

Scores are ratios of sums. Questions about one image are drawn together (a cluster). The intervals
of gIoU and cIoU are those of the studentised bootstrap (Efron and Tibshirani, *An Introduction to
the Bootstrap*, chapter 12): every draw is measured in its own standard error, that of a linearised
ratio (Cochran, *Sampling Techniques*, chapter 6), which keeps them right where few large objects
decide a sum. Draws have a fixed seed. `scripts/coverage.py` shows how often intervals hold the true
value.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

LEVEL = 0.95
DRAWS = 2000
AT_ONCE = 4_000_000  # values that are drawn at once
MIN_EPISODES = 5  # of each class, below which an mIoU has no interval
Interval = list[float]


def ratio_interval(
    above: Sequence[float],
    below: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval | None:
    """The interval of `sum(above) / sum(below)`, such as cIoU, within 0..1.

    Args:
        above: One value a row, such as the intersection.
        below: One value a row, such as the union.
        groups: The image of each row; None: every row has its own.
        seed: Of the draws.

    Returns:
        `[low, high]`; None with fewer than two groups, or where `below` sums to 0.
    """
    a, b = _by_group(above, below, groups)
    if len(a) < 2 or not b.sum():
        return None
    ratio, variance = _ratios(a[None], b[None])
    drawn = [_ratios(a[rows], b[rows]) for rows in _draws(len(a), np.random.default_rng(seed))]
    ratios, variances = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return _studentised(float(ratio[0]), float(variance[0]), ratios, variances)


def mean_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Interval | None:
    """The interval of the mean of values within 0..1, such as gIoU. See `ratio_interval`."""
    return ratio_interval(values, np.ones(len(values)).tolist(), groups, seed)


def share_interval(
    flags: Sequence[bool], groups: Sequence[Hashable] | None = None
) -> Interval | None:
    """The interval of a share of rows, such as N-acc or T-acc, 0..1.

    That of Wilson, for as many independent rows as the groups are worth (Kish's design effect); it
    has a width where all rows agree, too. None without rows.
    """
    a, b = _by_group([float(f) for f in flags], [1.0] * len(flags), groups)
    if not len(a):
        return None
    share, rows = a.sum() / b.sum(), b.sum()
    count = float(len(a)) if len(a) < rows else rows
    if 0 < share < 1 and len(a) > 1:
        clustered = len(a) / (len(a) - 1) * ((a - share * b) ** 2).sum() / rows**2
        count = min(share * (1 - share) / clustered, rows) if clustered else rows
    z = _quantile(max(len(a) - 1, 1))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [float(max(middle - half, 0.0)), float(min(middle + half, 1.0))]


def class_interval(
    classes: Sequence[Hashable], above: Sequence[float], below: Sequence[float]
) -> Interval | None:
    """The interval of the mean over classes of `sum(above) / sum(below)` (mIoU), 0..1.

    The classes are fixed, the episodes of each are a sample: the variance of each ratio is that of
    the jackknife, and the quantile that of Student's t (degrees of freedom after Satterthwaite).
    None where a class has fewer than `MIN_EPISODES` episodes: a ratio of so few sums is biased.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    names = {name: k for k, name in enumerate(dict.fromkeys(classes))}
    of = np.array([names[name] for name in classes])
    middle, variances, freedoms = 0.0, [], []
    for k in range(len(names)):
        x, y = a[of == k], b[of == k]
        n, rest = len(x), y.sum() - y
        if n < MIN_EPISODES:
            return None
        if not rest.all():
            continue  # at most one episode has a union: the class counts 0
        without = (x.sum() - x) / rest
        middle += float(x.sum() / y.sum())
        variances.append((n - 1) / n * ((without - without.mean()) ** 2).sum())
        freedoms.append(n - 1)
    spread = sum(v * v / f for v, f in zip(variances, freedoms, strict=True))
    middle, error = middle / max(len(names), 1), np.sqrt(sum(variances)) / max(len(names), 1)
    half = _quantile(sum(variances) ** 2 / spread) * error if spread else 0.0
    return [float(np.clip(middle - half, 0, 1)), float(np.clip(middle + half, 0, 1))]


def _ratios(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ratio of sums of each row `[d, n]`, and its variance (linearised); 0 without `below`."""
    n, total = above.shape[1], below.sum(1)
    ratio = above.sum(1) / np.where(total > 0, total, 1)
    squares = ((above - ratio[:, None] * below) ** 2).sum(1)
    return ratio, n / (n - 1) * squares / np.where(total > 0, total, 1) ** 2


def _draws(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`DRAWS` draws of `count` indices with replacement, in parts that fit into memory."""
    size = max(AT_ONCE // count, 1)
    return [
        rng.integers(count, size=(min(size, DRAWS - start), count))
        for start in range(0, DRAWS, size)
    ]


def _studentised(
    middle: float, variance: float, drawn: np.ndarray, variances: np.ndarray
) -> Interval:
    """The studentised interval around a value, from the values and variances of the draws."""
    usable = variances > 1e-3 * variance
    if variance <= 0 or usable.sum() < DRAWS // 2:
        return [middle, middle]
    error = np.sqrt(variance)
    t = (drawn[usable] - middle) / np.sqrt(variances[usable])
    low, high = np.quantile(t, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    ends = middle - high * error, middle - low * error
    return [float(np.clip(end, 0, 1)) for end in ends]


def _by_group(
    above: Sequence[float], below: Sequence[float], groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of both values in each group."""
    a, b = np.asarray(above, float), np.asarray(below, float)
    if groups is None:
        return a, b
    names = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    of = np.array([names[name] for name in groups], int)
    return np.bincount(of, a, len(names)), np.bincount(of, b, len(names))


def _quantile(freedom: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))
