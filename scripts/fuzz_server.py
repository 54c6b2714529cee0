"""Ten thousand malformed or hostile requests to a server.

It must answer no 5xx but 503, its memory must not grow, and the next valid request must have the
right answer.

    python -m scripts.fuzz_server [--count 10000] [--out out/hostile.json]

Each family has the same number of requests: truncated images, decompression bombs, wrong types,
huge fields, random bytes, deep JSON, broken forms, strange paths and methods, strange headers.
After them come schemathesis with our OpenAPI, and a few bodies that never end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from scripts.server_process import served

AT_ONCE = 16
SLOW = 8


def picture(rng: random.Random, side: int = 64, kind: str = "PNG") -> bytes:
    """An image file of noise."""
    file = io.BytesIO()
    noise = np.frombuffer(rng.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)
    Image.fromarray(noise).save(file, format=kind)
    return file.getvalue()


def bomb(side: int = 20_000) -> bytes:
    """A small file of a huge image."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, format="PNG")
    return file.getvalue()


BOMB = bomb()
ODD = [
    None,
    True,
    -1,
    1e308,
    "x",
    [],
    {},
    [[]],
    "NaN",
    float("nan"),
    float("inf"),
    10**40,
    "\ud800",
    "é" * 50,
    {"a": {"b": []}},
]
NAMES = [
    "image",
    "text",
    "points",
    "boxes",
    "references",
    "force_seg",
    "absent_threshold",
    "max_new_tokens",
    "path",
    "url",
    "__class__",
]


def truncated(rng):
    """An image file that ends too early."""
    whole = picture(rng, kind=rng.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]))
    return (
        "POST",
        "/v1/segment",
        {"files": {"image": whole[: rng.randrange(len(whole))]}, "data": {"text": "the cup"}},
    )


def bombs(rng):
    """An image that is larger than its file suggests."""
    image = base64.b64encode(BOMB).decode()
    return "POST", rng.choice(["/v1/segment", "/v1/sessions"]), {"json": {"image": image}}


def wrong_types(rng):
    """JSON whose fields have wrong types."""
    fields = {rng.choice(NAMES): rng.choice(ODD) for _ in range(rng.randrange(1, 5))}
    if rng.random() < 0.6:
        fields["image"] = base64.b64encode(picture(rng, 16)).decode()
    return (
        "POST",
        "/v1/segment",
        {"content": json.dumps(fields), "headers": {"content-type": "application/json"}},
    )


def huge_fields(rng):
    """Fields of extreme size."""
    size = rng.choice([10**4, 10**5, 10**6])
    fields = {"image": base64.b64encode(picture(rng, 16)).decode(), "text": "the cup"}
    fields |= rng.choice(
        [
            {"text": "x" * size},
            {"points": [[1, 2]] * (size // 10)},
            {"text": "word " * (size // 5)},
            {"x" * size: 1},
        ]
    )
    return "POST", "/v1/segment", {"json": fields}


def random_bytes(rng):
    """Random bytes as a body."""
    kind = rng.choice(
        [
            "application/json",
            "multipart/form-data; boundary=x",
            "text/plain",
            "application/x-pickle",
            "",
        ]
    )
    return (
        "POST",
        "/v1/segment",
        {"content": rng.randbytes(rng.randrange(5000)), "headers": {"content-type": kind}},
    )


def deep(rng):
    """Deeply nested JSON that is never closed."""
    depth = rng.randrange(100, 100_000)
    return (
        "POST",
        "/v1/segment",
        {
            "content": rng.choice([b"[", b'{"a":']) * depth,
            "headers": {"content-type": "application/json"},
        },
    )


def broken_forms(rng):
    """Forms that are cut and changed at random."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../x.png"\r\n\r\n'
        + picture(rng, 16)
        + b"\r\n--b--\r\n"
    )
    body = bytearray(body)
    for _ in range(rng.randrange(1, 30)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return (
        "POST",
        "/v1/segment",
        {
            "content": bytes(body[: rng.randrange(1, len(body))]),
            "headers": {"content-type": "multipart/form-data; boundary=b"},
        },
    )


def strange_paths(rng):
    """Paths and methods that do not exist."""
    path = rng.choice(
        [
            "/..%2f..%2fetc/passwd",
            "/v1/sessions/x/ask",
            "/v1/sessions/%00",
            "/v1/" + "a" * 3000,
            "/v1/segment?x=" + "y" * 3000,
            "/docs/../x",
        ]
    )
    return rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]), path, {}


def strange_headers(rng):
    """Unusual headers."""
    headers = {
        rng.choice(
            ["accept", "content-encoding", "transfer-encoding-x", "x-forwarded-for", "range"]
        ): "a" * rng.randrange(4000)
    }
    return "POST", "/v1/segment", {"json": {"image": 1}, "headers": headers}


FAMILIES = [
    truncated,
    bombs,
    wrong_types,
    huge_fields,
    random_bytes,
    deep,
    broken_forms,
    strange_paths,
    strange_headers,
]


async def attack(address: str, todo: Iterator, seen: Counter) -> None:
    """Sends all requests, a few at a time, and counts the results in `seen`."""

    async def worker() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=120) as http:
            for name, (method, path, fields) in todo:
                try:
                    found = await http.request(method, path, **fields)
                    seen[name, found.status_code] += 1
                    if found.status_code >= 500 and found.status_code != 503:
                        print(name, found.status_code, path, str(fields)[:300], file=sys.stderr)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    seen[name, type(error).__name__] += 1

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def slow(address: str, seen: Counter) -> None:
    """Sends bodies byte by byte that never end."""
    host, port = address.removeprefix("http://").split(":")

    async def drip() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        try:
            async with asyncio.timeout(30):
                while not reader.at_eof():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.5)
                    if reader._buffer:  # type: ignore[attr-defined]
                        seen["slow", int((await reader.readline()).split()[1])] += 1
                        break
        except (TimeoutError, ConnectionError):
            seen["slow", "cut"] += 1
        writer.close()

    await asyncio.gather(*(drip() for _ in range(SLOW)))


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


def main() -> None:
    """Sends all requests and prints the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", default="out/hostile.json")
    options = parser.parse_args()
    with served("--timeout", "10", "--max-body", "8") as (address, server):
        before, seen, rng = good(address), Counter(), random.Random(0)
        families = (FAMILIES[k % len(FAMILIES)] for k in range(options.count))
        jobs = ((family.__name__, family(rng)) for family in families)
        memory = psutil.Process(server.pid).memory_info
        first = options.count // 10
        grown = []
        for _ in range(10):
            asyncio.run(attack(address, islice(jobs, first), seen))
            grown.append(memory().rss / 2**20)
        schemathesis(address, max(options.count // 40, 10), seen)
        grown.append(memory().rss / 2**20)
        asyncio.run(slow(address, seen))
        grown.append(memory().rss / 2**20)
        after = good(address)
    bad = {
        f"{name} {status}": n
        for (name, status), n in seen.items()
        if isinstance(status, int) and status >= 500 and status != 503
    }
    before["meta"].pop("seconds"), after["meta"].pop("seconds")
    result = {
        "requests": sum(seen.values()),
        "by_family": {f"{name} {status}": n for (name, status), n in sorted(seen.items(), key=str)},
        "server_errors": bad,
        "memory_mib": grown,  # after each tenth, after schemathesis, after the slow bodies
        "memory_growth": grown[-1] / grown[0] - 1,
        "next_good_request_right": before == after,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
