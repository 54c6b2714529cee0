"""Malformed or hostile requests to a server and its page.

It must answer no 5xx but 503, hand out no file, and answer /healthz in time. Its memory must stay
below a bound, and the next valid request must have the right answer.

    python -m scripts.fuzz_server [--count 20000] [--out out/hostile.json]

Each family has the same number of requests: truncated images, decompression bombs, wrong types,
huge fields, unknown keys, many large references, random bytes, deep JSON, broken forms, strange
paths, methods and headers, foreign files in the page's events. After them come schemathesis with
our OpenAPI, and bodies and heads that never end.

The bound of the memory is that of a server with one question answered, plus
`TOGETHER * (5 * body + 16 * pixels)` bytes. No conversation is open; those have their own bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import httpx
import psutil

from reasonseg.serving.limits import TOGETHER
from scripts.hostile_requests import BODY, FAMILIES, PIXELS
from scripts.server_process import served

AT_ONCE = 16
SLOW = 200  # bodies, and heads, that never end
PATIENCE = 0.5  # seconds in which /healthz must answer
SECRETS = (b"root:", b"PATH=")  # in the files that are asked for


async def attack(address: str, todo: Iterator, seen: Counter) -> None:
    """Sends all requests, a few at a time, and counts the results in `seen`."""

    async def worker() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=120) as http:
            for name, (method, path, fields) in todo:
                try:
                    found = await http.request(method, path, **fields)
                    seen[name, found.status_code] += 1
                    if any(secret in found.content for secret in SECRETS):
                        seen["a file was handed out", 500] += 1
                    if found.status_code >= 500 and found.status_code != 503:
                        print(name, found.status_code, path, str(fields)[:300], file=sys.stderr)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    seen[name, type(error).__name__] += 1

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def slow(address: str, seen: Counter) -> None:
    """Sends bodies byte by byte that never end, and heads that never end."""
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    async def drip(start: bytes, name: str) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(start)
        try:
            async with asyncio.timeout(30):
                while not reader.at_eof():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.5)
                    if reader._buffer:  # type: ignore[attr-defined]
                        seen[name, int((await reader.readline()).split()[1])] += 1
                        break
                else:
                    seen[name, "cut"] += 1
        except TimeoutError:
            seen[name, "still open after 30 s"] += 1
        except ConnectionError:
            seen[name, "cut"] += 1
        writer.close()

    bodies = [drip(head + b"Content-Length: 100000\r\n\r\n", "slow body") for _ in range(SLOW)]
    await asyncio.gather(*bodies, *(drip(head, "slow head") for _ in range(SLOW)))


class Watch:
    """The largest memory of a server and its slowest /healthz, while the block runs."""

    def __init__(self, address: str, server: subprocess.Popen):
        self.address, self.memory = address, psutil.Process(server.pid).memory_info
        self.peak, self.slowest, self.over, self.going = 0, 0.0, 0, True

    def __enter__(self) -> Watch:
        self.threads = [threading.Thread(target=work) for work in (self._memory, self._health)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.going = False
        for thread in self.threads:
            thread.join()

    def _memory(self) -> None:
        while self.going:
            self.peak = max(self.peak, self.memory().rss)
            time.sleep(0.02)

    def _health(self) -> None:
        with httpx.Client(timeout=120) as http:
            while self.going:
                began = time.monotonic()
                http.get(self.address + "/healthz")
                took = time.monotonic() - began
                self.slowest, self.over = max(self.slowest, took), self.over + (took > PATIENCE)
                time.sleep(0.02)


def good(address: str) -> dict:
    """The answer to a valid request."""
    from reasonseg.serving.page import PICTURES

    with (PICTURES / "name.png").open("rb") as file:
        return httpx.post(
            address + "/v1/segment",
            files={"image": file},
            data={"text": "the umbrella"},
            timeout=120,
        ).json()


def schemathesis(address: str, count: int, seen: Counter) -> None:
    """Runs schemathesis with the server's OpenAPI; it reports a 5xx as `ServerError`."""
    command = shutil.which("schemathesis") or str(Path(sys.executable).with_name("schemathesis"))
    if not Path(command).is_file():
        seen["schemathesis", "not installed"] += 1
        return
    options = [
        "--checks",
        "not_a_server_error",
        "--max-examples",
        str(count),
        "--phases",
        "fuzzing",
    ]
    call = [command, "run", address + "/openapi.json", *options]
    done = subprocess.run(call, capture_output=True, text=True, timeout=1800)
    seen["schemathesis", "no 5xx" if done.returncode == 0 else "5xx: " + done.stdout[-1500:]] += 1


def limited_server():
    """A server with its page and the limits `BODY` and `PIXELS`."""
    limits = ("--max-body", str(BODY / 2**20), "--max-pixels", str(PIXELS / 1e6))
    return served("--timeout", "10", *limits, page=True)


def main() -> None:
    """Sends all requests and prints the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--out", default="out/hostile.json")
    options = parser.parse_args()
    with limited_server() as (address, server):
        before, seen, rng = good(address), Counter(), random.Random(0)
        jobs = ((f.__name__, f(rng)) for f, _ in zip(cycle(FAMILIES), range(options.count)))
        memory = psutil.Process(server.pid).memory_info
        idle, grown = memory().rss, []
        with Watch(address, server) as watch:
            for _ in range(10):
                asyncio.run(attack(address, islice(jobs, options.count // 10), seen))
                grown.append(round(memory().rss / 2**20))
            schemathesis(address, max(options.count // 80, 10), seen)
            asyncio.run(slow(address, seen))
            grown.append(round(memory().rss / 2**20))
        after = good(address)
    bad = {
        f"{name} {status}": n
        for (name, status), n in seen.items()
        if isinstance(status, int) and status >= 500 and status != 503
    }
    for answer in (before, after):
        answer["meta"].pop("seconds")
    bound = idle + TOGETHER * (5 * BODY + 16 * PIXELS)
    result = {
        "requests": sum(seen.values()),
        "by_family": {f"{name} {status}": n for (name, status), n in sorted(seen.items(), key=str)},
        "server_errors": bad,
        "memory_mib": grown,  # after each tenth, and after the slow bodies and heads
        "memory_idle_mib": round(idle / 2**20),
        "memory_peak_mib": round(watch.peak / 2**20),
        "memory_bound_mib": round(bound / 2**20),
        "memory_bound_holds": watch.peak <= bound,
        "healthz_slowest_seconds": round(watch.slowest, 3),
        "healthz_over_half_a_second": watch.over,
        "next_good_request_right": before == after,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    right = not bad and result["memory_bound_holds"] and result["next_good_request_right"]
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
