"""The families of hostile requests of `fuzz_server`: (method, path, keywords of httpx) each."""

from __future__ import annotations

import base64
import io
import json
import random

import numpy as np
from PIL import Image

BODY, PIXELS = 8 * 2**20, 10_000_000  # the limits of the server


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


JSON = {"content-type": "application/json"}
BOMB = bomb()
LARGE = base64.b64encode(bomb(int(PIXELS**0.5))).decode()
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
        {"content": json.dumps(fields), "headers": JSON},
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


def unknown_keys(rng):
    """As many keys as fit into a body."""
    count = rng.choice([1000, 50_000, 400_000])
    body = b"{" + b",".join(b'"k%d":1' % k for k in range(count)) + b"}"
    return "POST", "/v1/segment", {"content": body, "headers": JSON}


def large_references(rng):
    """Small files of many large images."""
    one = {"image": LARGE, "mask": LARGE}
    body = {"image": LARGE, "text": "the cup", "references": [one] * rng.randrange(17)}
    return "POST", "/v1/segment", {"json": body}


def foreign_files(rng):
    """An event of the page, or a function of its widgets, that names a file of the server."""
    path = rng.choice(
        ["/etc/passwd", "/proc/self/environ", "../../etc/passwd", "http://127.0.0.1:1/x.png", "/"]
    )
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    if rng.random() < 0.5:
        file = {"path": None, "url": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file] * 6, "fn_index": rng.randrange(8), "session_hash": "s"}
    if rng.random() < 0.3:
        body = {"component_id": rng.randrange(40), "fn_name": "accept_blobs", "data": [file]}
        return "POST", "/gradio_api/component_server", {"json": body}
    if rng.random() < 0.3:
        return "GET", "/gradio_api/file=" + path, {}
    return "POST", "/gradio_api/queue/join", {"json": body}


FAMILIES = [
    unknown_keys,
    large_references,
    foreign_files,
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
