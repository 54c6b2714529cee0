"""What one body, one request and all requests together may hold, and that no body stops others."""

import asyncio
import base64
import gc
import io
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from reasonseg import Answer, InputError
from reasonseg.serving.api import make_app
from reasonseg.serving.bodies import MAX_VALUES, decoded, from_json
from reasonseg.serving.engine import Busy, Engine
from reasonseg.serving.http_protocol import HeadTimeout
from reasonseg.serving.limits import TOGETHER, Budget, Limits, TooLarge
from reasonseg.structures.query import Query


def png(width, height, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), "white").save(file, "PNG")
    return file.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


class Blank:
    """Stands for a model that finds nothing."""

    class settings:  # noqa: N801
        memory, notice, about = 0, "", ""

    def batch(self, queries, **options):
        if any(q.text == "fail" for q in queries):
            raise RuntimeError("a fault of the model")
        return [Answer("", np.zeros((0, *q.size), bool), [], [], "no_seg") for q in queries]


@pytest.fixture
def client():
    app = make_app(Blank(), limits=Limits(body=2**20, pixels=10_000))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_shares_are_given_back():
    budget = Budget(Limits(body=100, pixels=1000))
    with budget.share() as share:
        share.take_bytes(90)
        share.take_pixels(2000)
        with pytest.raises(TooLarge):
            share.take_bytes(11)
        with pytest.raises(InputError, match="0.0 million pixels together"):
            share.take_pixels(1)
    assert budget.bytes == budget.pixels == 0
    budget.share().take_pixels(5)  # nobody closes it
    gc.collect()
    assert budget.pixels == 0


def test_all_requests_together_have_a_limit():
    budget = Budget(Limits(body=100, pixels=1000))
    shares = [budget.share() for _ in range(2 * TOGETHER + 1)]
    for share in shares[:TOGETHER]:
        share.take_bytes(100)
        share.take_pixels(1000)
    with pytest.raises(Busy):
        shares[-1].take_bytes(1)
    with pytest.raises(Busy):
        shares[-1].take_pixels(1)
    shares[0].close()
    shares[-1].take_bytes(100)


def test_the_pixels_of_one_request_count_together(client):
    image, mask = b64(png(100, 100)), b64(png(100, 100, "L"))
    body = {"image": image, "text": "x", "references": [{"image": image, "mask": mask}]}
    answer = client.post("/v1/segment", json=body)
    assert answer.status_code == 422 and "million pixels together" in answer.json()["error"]
    assert client.post("/v1/segment", json={"image": image, "text": "x"}).status_code == 200
    assert client.app.state.budget.pixels == client.app.state.budget.bytes == 0


def test_a_conversation_gives_its_share_back(client):
    image = b64(png(100, 100))
    name = client.post("/v1/sessions", json={"image": image}).json()["id"]
    for text in ("x", "fail"):
        client.post(f"/v1/sessions/{name}/ask", json={"text": text, "image": image})
    assert client.app.state.budget.pixels == client.app.state.budget.bytes == 0
    text = client.get("/metrics").text
    assert 'reasonseg_turns_total{status="200"} 1.0' in text
    assert 'reasonseg_turns_total{status="500"} 1.0' in text


def test_a_failure_is_counted(client):
    answer = client.post("/v1/segment", json={"image": b64(png(9, 9)), "text": "fail"})
    assert answer.status_code == 500 and "log" in answer.json()["error"]
    counted = 'reasonseg_requests_total{path="/v1/segment",status="500"} 1.0'
    assert counted in client.get("/metrics").text


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"k%d":1' % i for i in range(MAX_VALUES)) + b"}",
        b"[" * (MAX_VALUES + 1),
        b'"' + b"\\n" * 1_000_001 + b'"',
    ],
)
def test_too_many_values_are_refused_before_they_are_parsed(body):
    began = time.perf_counter()
    with pytest.raises(InputError, match="more than 100000 values"):
        from_json(body)
    assert time.perf_counter() - began < 0.2


def test_unknown_keys_are_refused_by_name(client):
    body = {f"k{i}": 1 for i in range(20_000)}
    answer = client.post("/v1/segment", json=body)
    assert answer.status_code == 422 and answer.json()["error"].startswith("k0: no such field")


@pytest.mark.parametrize("change", ["lines", "no padding", "url-safe", "data", "spaces"])
def test_base64_as_tools_write_it(change):
    data = bytes(range(256)) + b"\xff"
    text = base64.b64encode(data).decode()
    text = {
        "lines": base64.encodebytes(data).decode(),
        "no padding": text.rstrip("="),
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "data": "data:image/png;base64," + text,
        "spaces": f" {text}\r\n",
    }[change]
    assert decoded(text, "image") == data


@pytest.mark.parametrize("text", ["not base64!", "é", "a", "AAAA=AAA"])
def test_what_is_not_base64(text):
    with pytest.raises(InputError, match="image: not base64"):
        decoded(text, "image")


def test_a_malformed_field_of_a_form_is_named(client):
    files = {"image": png(9, 9)}
    answer = client.post("/v1/segment", files=files, data={"points": "[[1, 2"})
    assert answer.status_code == 422 and answer.json()["error"].startswith("points is not valid")


def test_unknown_paths_and_methods_answer_alike(client):
    for path, status in (("/v1/nothing", 404), ("/v1/segment", 405)):
        answer = client.get(path)
        assert answer.status_code == status and set(answer.json()) == {"error"}
    assert client.head("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/healthz/", "/v1"])
def test_status_paths_answer_alike(client, path):
    answer = client.post(path, json={})
    assert answer.status_code in (404, 405) and set(answer.json()) == {"error"}
    assert client.request("FOO", "/v1/segment").json()["error"] == "Method Not Allowed"


def test_half_a_character_is_no_failure(client):
    body = b'{"\\ud800": 1}'
    name = client.post("/v1/sessions", json={"image": b64(png(9, 9))}).json()["id"]
    for path in ("/v1/segment", "/v1/sessions", f"/v1/sessions/{name}/ask"):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422 and "no such field" in answer.json()["error"]
    gc.disable()
    try:
        client.post(f"/v1/sessions/{name}/ask", content=body)
        assert client.app.state.budget.bytes == 0
    finally:
        gc.enable()


def test_a_very_long_row_is_refused(client):
    file = io.BytesIO()
    Image.new("1", (70_000, 1)).save(file, "PNG")
    answer = client.post("/v1/segment", json={"image": b64(file.getvalue()), "text": "x"})
    assert answer.status_code == 422 and "no side may be longer" in answer.json()["error"]


def test_pages_of_other_origins():
    with TestClient(make_app(Blank(), token="secret", origins=["https://a.example"])) as client:
        asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        answer = client.options("/v1/segment", headers=asks)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        asks["Origin"] = "https://b.example"
        answer = client.options("/v1/segment", headers=asks)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("code", ["utf-8", "latin-1"])
def test_a_token_that_is_not_ascii(code):
    with TestClient(make_app(Blank(), token="geheimé")) as client:
        header = {b"Authorization": b"bearer " + "geheimé".encode(code)}
        assert client.get("/metrics", headers=header).status_code == 200
        assert client.get("/metrics", headers={"Authorization": "Bearer geheim"}).status_code == 401


def test_a_token_outside_latin_1_is_not_met_by_question_marks():
    with TestClient(make_app(Blank(), token="中")) as client:
        assert client.get("/metrics", headers={"Authorization": "Bearer ?"}).status_code == 401


def test_the_last_job_is_let_go():
    import weakref

    engine = Engine(Blank())
    image = np.zeros((4, 4, 3), np.uint8)
    seen = weakref.ref(image)
    job = engine.submit(Query(image, "x"))
    job.answer.result(5)
    del job, image
    until = time.monotonic() + 2
    while seen() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert seen() is None and engine.stop()


@pytest.fixture
def address():
    """A real server, with its own event loop in a thread; heads may take half a second."""
    app = make_app(Blank(), limits=Limits(body=32 * 2**20))
    quick = type("Quick", (HeadTimeout,), {"seconds": 0.5})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = uvicorn.Config(app, port=port, http=quick, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield "127.0.0.1", port
    server.should_exit = True
    thread.join(10)


def test_a_slow_head_is_cut_and_a_slow_answer_is_not(address):
    async def slow(parts):
        reader, writer = await asyncio.open_connection(*address)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.1)
        return await asyncio.wait_for(reader.read(1), 5)

    async def both():
        assert await slow([b"GET /healthz HTTP/1.1\r\n", b"X: 1\r\n"]) == b""
        assert await slow([]) == b""
        assert await slow([b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"\r\n"]) == b"H"

    asyncio.run(both())


BODIES = {
    "keys": lambda: b"{" + b",".join(b'"k%07d":1' % i for i in range(2_200_000)) + b"}",
    "string": lambda: b'{"image":"' + b"A" * (28 * 2**20) + b'"}',
    "escapes": lambda: b'{"image":"' + b"\\/AAAAAAAAAAAAAA" * 900_000 + b'"}',
    "values": lambda: b'{"points":[' + b",".join([b"[1,2,1]"] * 24_000) + b"]}",
    "pixels": lambda: b'{"text":"x","image":"' + b64(png(6300, 6300, "RGBA")).encode() + b'"}',
    "form": lambda: b"--x\r\n" * 5_000_000,
}


@pytest.mark.parametrize("name", BODIES)
def test_no_single_body_stops_the_server(address, name):
    url, body = "http://{}:{}".format(*address), BODIES[name]()
    kind = "multipart/form-data; boundary=x" if name == "form" else "application/json"
    slowest, done, statuses = 0.0, threading.Event(), []

    def send():
        try:
            answer = httpx.post(
                url + "/v1/segment", content=body, headers={"content-type": kind}, timeout=60
            )
            statuses.append(answer.status_code)
        finally:
            done.set()

    sender = threading.Thread(target=send)
    sender.start()
    with httpx.Client() as http:
        while not done.is_set():
            began = time.perf_counter()
            assert http.get(url + "/healthz", timeout=10).status_code == 200
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.01)
    sender.join()
    assert statuses == [200 if name == "pixels" else 422]
    assert slowest < 0.5, slowest
