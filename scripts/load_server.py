"""Load test of a server: 32 clients for a minute, against `segmenter.batch` in the same run.

    python -m scripts.load_server [--clients 32] [--seconds 60] [--out out/load.json]

Goodput is the number of answered questions per second. The baseline is the same questions in
batches of 16, called directly, measured before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from reasonseg import Query, Segmenter
from reasonseg.datasets.scenes import Config
from scripts.server_process import served

QUESTIONS, AT_MOST = 64, 60  # AT_MOST: prepared requests per second


def questions() -> list[Query]:
    """Drawn scenes with one question each."""
    data = Config("val", QUESTIONS, size=224).build()
    return [data[i].query for i in range(QUESTIONS)]


def direct(segmenter, queries: list[Query], seconds: float) -> float:
    """Questions per second of `batch`, 16 at a time.

    Images are encoded anew each time, as those of clients are.
    """
    segmenter.batch(queries[:16])
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        segmenter.forget()
        start = done % QUESTIONS
        done += len(segmenter.batch(queries[start : start + 16]))
    return done / (time.perf_counter() - began)


def body_of(query: Query, number: int) -> bytes:
    """A request whose image is new: its first pixel encodes a number."""
    file, image = io.BytesIO(), query.image.copy()
    image[0, 0] = number % 256, number // 256 % 256, 0
    Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return json.dumps(
        {"image": base64.b64encode(file.getvalue()).decode(), "text": query.text}
    ).encode()


async def client(
    address: str, bodies: Iterator[bytes], until: float, seen: list[tuple[int, float]]
) -> None:
    """Sends one question after another; after a 503 it waits as long as Retry-After says."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as http:
        while time.perf_counter() < until:
            body = next(bodies)
            began = time.perf_counter()
            found = await http.post(
                "/v1/segment", content=body, headers={"content-type": "application/json"}
            )
            seen.append((found.status_code, time.perf_counter() - began))
            if found.status_code == 503:
                await asyncio.sleep(float(found.headers.get("retry-after", 1)))


async def clients(
    address: str, bodies: Iterator[bytes], count: int, seconds: float
) -> list[tuple[int, float]]:
    """(status, seconds) of all requests of `count` clients."""
    seen: list[tuple[int, float]] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(address, bodies, until, seen) for _ in range(count)))
    return seen


def main() -> None:
    """Measures and prints the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", default="out/load.json")
    options = parser.parse_args()
    queries, segmenter = questions(), Segmenter.from_pretrained("tiny")
    before = direct(segmenter, queries, options.seconds / 3)
    made = [body_of(queries[k % QUESTIONS], k) for k in range(int(options.seconds * AT_MOST))]
    with served() as (address, _):
        began = time.perf_counter()
        seen = asyncio.run(clients(address, iter(made), options.clients, options.seconds))
        took = time.perf_counter() - began
    after = direct(segmenter, queries, options.seconds / 3)
    good = [seconds for status, seconds in seen if status == 200]
    direct_rate = (before + after) / 2
    result = {
        "clients": options.clients,
        "seconds": took,
        "direct_per_second": [before, after],
        "answered_per_second": len(good) / took,
        "goodput_over_direct": len(good) / took / direct_rate,
        "refused": sum(status == 503 for status, _ in seen) / len(seen),
        "other_errors": sum(status not in (200, 503) for status, _ in seen),
        "p50": float(np.percentile(good, 50)),
        "p99": float(np.percentile(good, 99)),
        "environment": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
