"""No event of the page can name a file that was not uploaded through it."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from reasonseg.serving.limits import Budget, Limits
from reasonseg.serving.page_guard import PageGuard


@pytest.fixture(scope="module")
def client(segmenter):
    from reasonseg.serving.api import make_app
    from reasonseg.serving.page import mount

    with TestClient(mount(make_app(segmenter))) as client:
        yield client


def png(width=8, height=8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def uploaded(client) -> Path:
    answer = client.post("/gradio_api/upload", files={"files": ("image.png", png(), "image/png")})
    assert answer.status_code == 200, answer.text
    return Path(answer.json()[0])


def called(client, event: dict, path: str | None, url: str | None = None):
    """The answer to a call of an event with a file in every one of its inputs."""
    file = {"path": path, "url": url, "meta": {"_type": "gradio.FileData"}}
    return client.post(
        "/gradio_api/queue/join",
        json={"data": [file] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "s"},
    )


def foreign(upload: Path, folder: Path) -> list[str]:
    """Paths and addresses that no one uploaded."""
    secret = folder / "secret.txt"
    secret.write_text("not to be read from outside", encoding="utf-8")
    link = upload.parent / "link.png"
    if not link.is_symlink():
        os.symlink(secret, link)
    return [
        "/etc/passwd",
        str(secret),
        str(link),
        f"{upload.parent}/../../../../../../../..{secret}",
        "http://127.0.0.1:9/secret.txt",
        "file:///etc/passwd",
        "pyproject.toml",
        "/etc/pass\0wd",
    ]


def test_every_event_refuses_what_was_not_uploaded(client, tmp_path):
    events = client.get("/config").json()["dependencies"]
    assert any(event["inputs"] for event in events)
    upload = uploaded(client)
    for event in events:
        for path in foreign(upload, tmp_path) if event["inputs"] else ():
            answer = called(client, event, path)
            assert answer.status_code == 422, (event["id"], path, answer.text)
            assert "not uploaded" in answer.json()["error"]


def test_an_upload_passes(client):
    events = client.get("/config").json()["dependencies"]
    event = next(event for event in events if event["inputs"])
    answer = called(client, event, str(uploaded(client)))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("url", ["data:image/png;base64,", "http://127.0.0.1:9/image.png"])
def test_an_address_in_place_of_a_file_is_refused(client, url, named):
    upload = str(uploaded(client)) if named and url.startswith("data:") else None
    for event in client.get("/config").json()["dependencies"]:
        if event["inputs"]:
            assert called(client, event, upload, url).status_code == 422


@pytest.mark.parametrize("multipart", [False, True])
def test_the_login_passes(segmenter, multipart):
    from reasonseg.serving.api import make_app
    from reasonseg.serving.page import mount

    fields = {"username": "reasonseg", "password": "secret"}
    given = {"files": {k: (None, v) for k, v in fields.items()}} if multipart else {"data": fields}
    with TestClient(mount(make_app(segmenter, token="secret"), token="secret")) as client:
        assert client.get("/config").status_code == 401
        answer = client.post("/login", **given)
        assert answer.status_code == 200, answer.text
        assert client.get("/config").status_code == 200


def test_too_large_an_event_is_refused(client):
    answer = client.post("/gradio_api/queue/join", content=b" " * (Limits().body + 1))
    assert answer.status_code == 413


def problem_of(folder, body, **limits):
    budget = Budget(Limits(**limits))
    with budget.share() as share:
        return PageGuard(None, folder, budget).problem(body, share)


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    file = tmp_path.resolve() / "image.png"
    file.write_bytes(png(40, 40))
    body = b'{"data": [{"path": "%s"}]}' % str(file).encode()
    assert problem_of(tmp_path, body, pixels=1600) is None
    problem = problem_of(tmp_path, body, pixels=1599)
    assert problem is not None and "40x40" in problem and str(tmp_path) not in problem


@pytest.mark.parametrize("body", [b"{", b"[" * 200_000, b'{"path": 3}', b'{"a": [{"path": {}}]}'])
def test_a_damaged_body_is_refused(tmp_path, body):
    assert problem_of(tmp_path, body)


def test_a_file_named_often_counts_often(tmp_path):
    file = tmp_path.resolve() / "image.png"
    file.write_bytes(png(40, 40))
    named = b'{"path": "%s"}' % str(file).encode()
    problem = problem_of(tmp_path, b'{"data": [' + b",".join([named] * 3) + b"]}", pixels=1600)
    assert problem is not None and "million pixels together" in problem


@pytest.mark.parametrize("extra", [{"component": "label"}, {"constructor_args": {}}])
def test_messages_that_build_parts_of_a_page_are_refused(client, extra):
    """gradio would build any component from a message, and read the files that it names."""
    content = {"type": "component", "value": "/etc/passwd", "props": {}, **extra}
    message = {"role": "user", "content": [content]}
    for event in client.get("/config").json()["dependencies"]:
        body = {"data": [None, [message]], "fn_index": event["id"], "session_hash": "s"}
        answer = client.post("/gradio_api/queue/join", json=body)
        assert answer.status_code == 422 and "other than text" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["process_recording", "run/predict", "call/ask", "vibe-edit", "dev/reload", "proxy=x"]
)
def test_what_the_page_never_calls_is_not_there(client, path):
    assert client.post(f"/gradio_api/{path}", json={}).status_code == 404


def test_a_login_is_small(client):
    answer = client.post("/login", files={"password": b"x" * 100_000})
    assert answer.status_code == 413


def painted(client, **fields):
    given = {"type": "layer", "index": "0", "id": "x", "fn_name": "accept_blobs"}
    given |= {"component_id": "1", "session_hash": "s", **fields}
    return client.post("/gradio_api/component_server", data=given, files={"file": png()})


@pytest.mark.parametrize("fields", [{"index": "50000000"}, {"index": "abc"}, {"fn_name": "exec"}])
def test_painted_images_are_bounded(client, fields):
    assert painted(client, **fields).status_code == 422
    assert client.post("/gradio_api/component_server", json={"data": {}}).status_code == 422


def test_painted_images_that_nobody_takes_are_dropped(tmp_path):
    class Editor:
        blob_storage = {k: None for k in range(40)}

    budget = Budget(Limits())
    guard = PageGuard(None, tmp_path, budget, Editor)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="fn_name"\r\n\r\naccept_blobs\r\n--b\r\n'
        b'Content-Disposition: form-data; name="type"\r\n\r\nlayer\r\n--b\r\n'
        b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        + png()
        + b"\r\n--b--\r\n"
    )
    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    with budget.share() as share:
        assert guard.painted(body, headers, share) is None
    assert len(Editor.blob_storage) < 16


def test_the_page_has_a_budget_of_its_own(client):
    app = client.app
    mine = next(m for m in app.user_middleware if m.cls is PageGuard).kwargs["budget"]
    assert mine is not app.state.budget and mine.limits == app.state.budget.limits
