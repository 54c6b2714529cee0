"""The app on a real local Ray Serve answers as the model does."""

import base64
import io
import json
import socket

import httpx
import pytest
from PIL import Image

from reasonseg import Query
from reasonseg.serving.limits import Limits
from reasonseg.structures.masks import from_rle

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def address():
    import ray
    from ray import serve

    from reasonseg.serving.ray_serve import run

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    run(
        {"device": "cpu"},
        port=port,
        limits=Limits(body=2**20),
        token="secret",
        page=False,
        blocking=False,
    )
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def b64(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_it_answers_refuses_and_converses(address, segmenter, scenes):
    query = scenes[0].query
    with httpx.Client(
        base_url=address, timeout=120, headers={"Authorization": "Bearer secret"}
    ) as client:
        assert client.get("/readyz").status_code == 200
        found = client.post("/v1/segment", json={"image": b64(query.image), "text": query.text})
        answer = segmenter(query)
        assert found.status_code == 200 and found.json()["text"] == answer.text
        assert (
            from_rle(found.json()["objects"][0]["segmentation"]) ^ answer.masks[0]
        ).mean() < 1e-3
        bad = client.post("/v1/segment", json={"image": b64(query.image), "text": ""})
        assert bad.status_code == 422 and "nothing is asked" in bad.json()["error"]
        assert client.post("/v1/segment", content=b"x" * 2**21).status_code == 413
        assert httpx.get(address + "/metrics").status_code == 401
        name = client.post("/v1/sessions", json={"image": b64(query.image)}).json()["id"]
        for _ in range(2):  # the conversation is found again
            events = (
                client.post(f"/v1/sessions/{name}/ask", json={"text": query.text})
                .text.strip()
                .split("\n\n")
            )
            assert json.loads(events[-1].split("data: ")[1])["text"] == answer.text


def test_many_at_once(address, segmenter, scenes):
    import concurrent.futures

    queries = [s.query for s in scenes[:6]] * 3
    expected = [a.text for a in segmenter.batch(queries)]

    def ask(query: Query) -> str:
        body = {"image": b64(query.image), "text": query.text}
        return httpx.post(
            address + "/v1/segment",
            json=body,
            headers={"Authorization": "Bearer secret"},
            timeout=120,
        ).json()["text"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, queries)) == expected
