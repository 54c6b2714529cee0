"""The HTTP side with the embedded model: what comes back, what is refused, and that neighbours
do not meet.
"""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from reasonseg import Answer, Query
from reasonseg.serving.api import make_app
from reasonseg.serving.engine import Busy, Engine, Late
from reasonseg.serving.limits import Limits
from reasonseg.structures.masks import from_rle


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def b64(image):
    return base64.b64encode(png(image)).decode()


@pytest.fixture(scope="module")
def client(segmenter):
    with TestClient(
        make_app(segmenter, limits=Limits(body=2 * 2**20, pixels=1_000_000)),
        raise_server_exceptions=False,
    ) as client:
        yield client


def same(found, answer):
    assert found["status"] == answer.status and found["text"] == answer.text
    masks = [from_rle(o["segmentation"]) for o in found["objects"]]
    assert len(masks) == len(answer.masks)
    assert all((a ^ b).mean() < 1e-3 for a, b in zip(masks, answer.masks, strict=True))


def test_multipart_and_json_say_what_the_model_says(client, segmenter, scenes):
    query = scenes[0].query
    answer = segmenter(query)
    form = client.post(
        "/v1/segment", files={"image": ("x.png", png(query.image))}, data={"text": query.text}
    )
    assert form.status_code == 200, form.text
    same(form.json(), answer)
    same(
        client.post("/v1/segment", json={"image": b64(query.image), "text": query.text}).json(),
        answer,
    )
    assert set(form.json()) == {"text", "status", "objects", "references", "meta"}


def test_places_alone_and_a_picture_on_request(client, segmenter, scenes):
    image = scenes[0].query.image
    boxed = client.post("/v1/segment", json={"image": b64(image), "boxes": [[10, 10, 120, 120]]})
    same(boxed.json(), segmenter(Query(image, boxes=[(10, 10, 120, 120)])))
    form = client.post(
        "/v1/segment",
        files={"image": png(image)},
        data={"points": "[[60, 60, 1]]"},
        headers={"Accept": "image/png"},
    )
    assert form.headers["content-type"] == "image/png"
    assert (
        Image.open(io.BytesIO(form.content)).size
        == segmenter(Query(image, points=[(60, 60, 1)])).overlay().size
    )


BAD = [
    ({}, 422, "image"),
    ({"image": "not base64!"}, 422, "not base64"),
    ({"image": base64.b64encode(b"no picture").decode(), "text": "x"}, 422, "not an image"),
    ({"text": "x"}, 422, "image"),
    ({"text": 5}, 422, "text"),
    ({"text": "x" * 30_000}, 422, "text"),
    ({"text": ""}, 422, "nothing is asked"),
    ({"text": "x", "points": [[1e9, 2]]}, 422, "point"),
    ({"text": "x", "points": [["a", 2]]}, 422, "points"),
    ({"text": "x", "boxes": [[5, 5, 1, 1]]}, 422, "box"),
    ({"text": "x", "max_new_tokens": 10**9}, 422, "max_new_tokens"),
    ({"text": "x", "path": "/etc/passwd"}, 422, "path"),
    ({"text": "x", "image_url": "http://example.com/a.png"}, 422, "image_url"),
    ({"text": "\ud800"}, 422, "text"),
    ({"text": "x", "references": [{"image": "AA=="}]}, 422, "references.0.mask"),
    ([], 422, "body"),
    ("text", 422, "body"),
]


@pytest.mark.parametrize("fields, status, words", BAD)
def test_bad_requests_are_one_clear_line(client, scenes, fields, status, words):
    if isinstance(fields, dict) and "image" not in fields and fields not in ({}, {"text": "x"}):
        fields = {"image": b64(scenes[0].query.image), **fields}
    found = client.post(
        "/v1/segment", content=json.dumps(fields), headers={"content-type": "application/json"}
    )
    assert (
        found.status_code == status
        and words in found.json()["error"]
        and "Traceback" not in found.text
    )
    assert "/work" not in found.text and "reasonseg/" not in found.text


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"{", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"\xff\xfe\x00", "application/json", 422),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 422),
        (b"anything", "multipart/form-data", 422),
        (b"", "multipart/form-data; boundary=x", 422),
        (b"a" * 3_000_000, "application/json", 413),
    ],
)
def test_bodies_that_are_none(client, body, kind, status):
    assert (
        client.post("/v1/segment", content=body, headers={"content-type": kind}).status_code
        == status
    )


def test_a_body_that_does_not_tell_its_size(client):
    found = client.post(
        "/v1/segment",
        content=iter([b"x" * 500_000] * 6),
        headers={"content-type": "application/json"},
    )
    assert found.status_code == 413


def test_bombs_are_refused_before_they_are_decoded(client):
    bomb = png(np.zeros((3000, 3000, 3), np.uint8))
    assert len(bomb) < 100_000
    found = client.post("/v1/segment", files={"image": bomb}, data={"text": "x"})
    assert found.status_code == 422 and "million pixels" in found.json()["error"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_pictures(client, scenes, kind):
    file = io.BytesIO()
    Image.fromarray(scenes[0].query.image).save(file, format=kind)
    whole = file.getvalue()
    for share in (0.02, 0.3, 0.9):
        found = client.post(
            "/v1/segment",
            files={"image": whole[: int(len(whole) * share)]},
            data={"text": "the cup"},
        )
        assert found.status_code in (200, 422) and (
            found.status_code == 200 or "image" in found.json()["error"]
        )


def test_a_conversation(client, segmenter, scenes):
    image, text = scenes[0].query.image, scenes[0].query.text
    name = client.post("/v1/sessions", json={"image": b64(image)}).json()["id"]
    events = asked(client, name, {"text": text})
    assert [kind for kind, _ in events][-1] == "answer" and events[0][0] == "text"
    growing = [data["text"] for kind, data in events if kind == "text"]
    assert (
        all(b.startswith(a[:3]) for a, b in zip(growing, growing[1:], strict=False))
        and growing[-1] == events[-1][1]["text"]
    )
    same(events[-1][1], segmenter(Query(image, text)))
    before = from_rle(events[-1][1]["objects"][0]["segmentation"])
    corrected = asked(client, name, {"correct": 0, "points": [[3, 3, 1]]})[-1]
    assert (
        corrected[0] == "answer"
        and (from_rle(corrected[1]["objects"][0]["segmentation"]) ^ before).any()
    )
    assert asked(client, name, {"correct": 7, "points": [[3, 3, 1]]})[-1] == (
        "error",
        {"error": "the last answer has 1 masks; there is no mask 7"},
    )
    assert client.delete(f"/v1/sessions/{name}").status_code == 204
    assert client.delete(f"/v1/sessions/{name}").status_code == 404
    assert client.post(f"/v1/sessions/{name}/ask", json={"text": "x"}).status_code == 404


def asked(client, name, body):
    found = client.post(f"/v1/sessions/{name}/ask", json=body)
    assert found.headers["content-type"].startswith("text/event-stream"), found.text
    parts = [part.split("\n") for part in found.text.strip().split("\n\n")]
    return [
        (kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for kind, data in parts
    ]


def test_conversations_do_not_meet(client, segmenter, scenes):
    first, second = scenes[0].query, scenes[2].query
    names = [
        client.post("/v1/sessions", json={"image": b64(q.image)}).json()["id"]
        for q in (first, second)
    ]
    for _ in range(2):
        for name, query in zip(names, (first, second), strict=True):
            same(asked(client, name, {"text": query.text})[-1][1], segmenter(query))


def test_status_and_metrics(client, scenes):
    client.post("/v1/segment", json={"image": b64(scenes[0].query.image), "text": "the cup"})
    assert (
        client.get("/healthz").json() == {"status": "ok"}
        and client.get("/readyz").status_code == 200
    )
    text = client.get("/metrics").text
    assert (
        'reasonseg_requests_total{path="/v1/segment",status="200"}' in text
        and "reasonseg_queue_depth" in text
    )
    assert (
        client.get("/nowhere").json() == {"error": "Not Found"}
        and client.get("/v1/segment").status_code == 405
    )


def test_openapi_describes_itself(client):
    schema = client.get("/openapi.json").json()
    assert {"/v1/segment", "/v1/sessions", "/v1/sessions/{name}/ask"} <= set(schema["paths"])
    text = json.dumps(schema)
    for name in set(__import__("re").findall(r"#/components/schemas/(\w+)", text)):
        assert name in schema["components"]["schemas"]
    example = schema["paths"]["/v1/segment"]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]
    assert client.post("/v1/segment", json=example).status_code == 200


def test_a_token(segmenter):
    with TestClient(make_app(segmenter, token="secret")) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert (
            client.post(
                "/v1/segment", json={}, headers={"Authorization": "Bearer wrong"}
            ).status_code
            == 401
        )
        assert (
            client.post(
                "/v1/segment", json={}, headers={"Authorization": "Bearer secret"}
            ).status_code
            == 422
        )


def test_a_token_where_it_is_mounted(segmenter):
    from fastapi import FastAPI

    parent = FastAPI()
    parent.mount("/seg", make_app(segmenter, token="secret"))
    with TestClient(parent) as client:
        assert client.post("/seg/v1/segment", json={}).status_code == 401
        assert client.get("/seg/healthz").status_code == 200


def test_what_cannot_be_answered_changes_nothing(client, scenes):
    query = scenes[0].query
    name = client.post("/v1/sessions", json={"image": b64(query.image)}).json()["id"]
    shown = {
        "image": b64(query.image),
        "mask": b64((scenes[0].truth.masks[0] * 255).astype(np.uint8)),
    }
    assert (
        asked(client, name, {"text": "x", "points": [[10**6, 1]], "references": [shown]})[-1][0]
        == "error"
    )
    conversation = client.app.state.conversations.find(name)
    assert conversation.session.references == []
    assert (
        asked(client, name, {"references": [shown]})[-1][0] == "answer"
        and len(conversation.session.references) == 1
    )


class Slow:
    """Stands for a model: takes its time, notes its batches."""

    def __init__(self, seconds=0.05):
        self.seconds, self.batches = seconds, []

    def batch(self, queries, **options):
        time.sleep(self.seconds)
        self.batches.append(len(queries))
        if any(q.text == "bad" for q in queries):
            raise ValueError("bad")
        blank = np.zeros((0, 4, 4), bool)
        return [Answer(q.text, blank, [], [], "no_seg") for q in queries]


def query(text):
    return Query(np.zeros((4, 4, 3), np.uint8), text)


def test_the_engine_batches_and_refuses_what_it_cannot_hold():
    model = Slow()
    engine = Engine(model, batch=4, waiting=6, linger=0.02)
    jobs = [engine.submit(query(str(i))) for i in range(5)]
    with pytest.raises(Busy) as busy:
        for _ in range(20):
            engine.submit(query("more"))
    assert busy.value.retry >= 1
    assert [job.answer.result(5).text for job in jobs] == list("01234")
    assert max(model.batches) <= 4 and len(model.batches) < 11
    assert engine.stop()


def test_a_refused_question_leaves_nothing_behind(segmenter, scenes):
    """A complaint that held the frames it came through would hold the picture too, until the
    garbage collector comes by.
    """
    import asyncio
    import gc
    import weakref

    import httpx

    app, seen = make_app(segmenter), []
    submit = app.state.engine.submit

    def noted(query, **options):
        seen.append(weakref.ref(query.image))
        return submit(query, **options)

    app.state.engine.submit = noted

    async def ask(text):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://x"
        ) as http:
            return await http.post(
                "/v1/segment", json={"image": b64(scenes[0].query.image), "text": text}
            )

    gc.disable()
    try:
        assert asyncio.run(ask("word " * 2000)).status_code == 422  # longer than the model reads
        # the model's thread holds its last job until the next comes
        assert asyncio.run(ask("the cup")).status_code == 200
        assert len(seen) == 2 and seen[0]() is None
    finally:
        gc.enable()
        app.state.engine.stop()


def test_late_and_cancelled_requests_cost_nothing():
    model = Slow(0.2)
    engine = Engine(model, batch=1)
    first = engine.submit(query("first"))
    late, cancelled = engine.submit(query("late"), timeout=0.01), engine.submit(query("cancelled"))
    assert cancelled.answer.cancel()
    last = engine.submit(query("last"))
    assert first.answer.result(5).text == "first" and last.answer.result(5).text == "last"
    with pytest.raises(Late):
        late.answer.result(5)
    assert model.batches == [1, 1] and engine.stop()


def test_one_that_fails_fails_alone():
    engine = Engine(Slow(0.01), batch=4, linger=0.1)
    jobs = [engine.submit(query(text)) for text in ("a", "bad", "b")]
    assert jobs[0].answer.result(5).text == "a" and jobs[2].answer.result(5).text == "b"
    with pytest.raises(ValueError):
        jobs[1].answer.result(5)
    assert engine.stop()


def test_stopping_finishes_what_was_accepted():
    engine = Engine(Slow(0.05), batch=2)
    jobs = [engine.submit(query(str(i))) for i in range(6)]
    stopped = []
    thread = threading.Thread(target=lambda: stopped.append(engine.stop()))
    thread.start()
    assert [job.answer.result(5).text for job in jobs] == list("012345")
    thread.join()
    assert stopped == [True]
    with pytest.raises(Busy):
        engine.submit(query("after"))


def test_requests_of_other_options_do_not_share_a_batch():
    model = Slow(0.02)
    engine = Engine(model, batch=8, linger=0.05)
    jobs = [engine.submit(query(str(i)), force_seg=i % 2 == 0) for i in range(4)]
    assert [job.answer.result(5).text for job in jobs] == list("0123") and max(model.batches) == 1
    assert engine.stop()


def test_a_request_cannot_name_a_model_or_an_address(client, scenes):
    """Only what the server was started with is used; nothing else is opened."""
    for field in ("model", "endpoint", "url", "drawer"):
        body = {
            "image": b64(scenes[0].query.image),
            "text": "x",
            field: "endpoint:http://127.0.0.1:9",
        }
        reply = client.post("/v1/segment", json=body)
        assert reply.status_code == 422 and f"{field}: no such field" in reply.text
    picture = client.post("/v1/segment", json={"image": "http://127.0.0.1:9/x.png", "text": "x"})
    assert picture.status_code == 422
