"""Helpers of the speed measurements: forced answers, paired timings, and their environment."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import transformers

from reasonseg import Segmenter
from reasonseg.backbones import language as backbones
from reasonseg.nn.generation import MarkerLogitsProcessor


class Forced(MarkerLogitsProcessor):
    """Generates the given ids, whatever the scores; counts them as our own processor does."""

    def __init__(self, ids: list[int]):
        self.ids, self.steps, self.probabilities = ids, 0, []

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """The next given id for every row, `[b]`."""
        self.steps += 1
        self.probabilities.append(torch.ones(len(scores), device=scores.device))
        return torch.full((len(scores),), self.ids[self.steps - 1], device=scores.device)


@contextmanager
def forced(ids: list[int]):
    """Inside, our generation gives these ids."""
    kept = backbones.MarkerLogitsProcessor
    backbones.MarkerLogitsProcessor = lambda *_, **__: Forced(ids)
    try:
        yield
    finally:
        backbones.MarkerLogitsProcessor = kept


def answer_of(segmenter: Segmenter, length: int) -> list[int]:
    """Words, `<SEG>` and the end token, `length` ids in all."""
    backbone = segmenter.backbone
    words = backbone.text_ids("the cup")
    ids = (words * length)[: length - 2]
    return [*ids, backbone.markers.seg, backbone.tokenizer.eos_token_id]


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """(seconds, result) of a call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def paired(works: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns, after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            spent, _ = timed(work)
            if run:
                seconds[name].append(spent)
    return seconds


def ratio(seconds: dict[str, list[float]], baseline: str, ours: str) -> dict[str, float]:
    """Median of the ratios of paired runs, and their range."""
    ratios = [a / b for a, b in zip(seconds[baseline], seconds[ours], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def image(seed: int, size: tuple[int, int] = (480, 640)) -> np.ndarray:
    """An image of noise, uint8 `[h, w, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def environment(segmenter: Segmenter | None) -> dict:
    """The versions, the device and the model of a measurement."""
    gpu = segmenter.device.type == "cuda" if segmenter else torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads"
    model = segmenter.fingerprint if segmenter else ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "model": model,
    }


def show(tree: dict, lead: str = "") -> None:
    """Prints numbers, one per line."""
    for name, value in tree.items():
        if isinstance(value, dict):
            show(value, f"{lead}{name} ")
        else:
            print(
                f"{lead}{name}: {value:.3f}"
                if isinstance(value, float)
                else f"{lead}{name}: {value}"
            )
