"""A server that does everything wrong: no exception but one, and no more requests than allowed."""

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from reasonseg.backbones.speakers import endpoint
from reasonseg.backbones.speakers.base import Ledger, SpeakerError, locate, shaped
from reasonseg.backbones.speakers.endpoint import Config
from reasonseg.backbones.speakers.places.family import families
from reasonseg.errors import InputError

IMAGE = np.full((120, 200, 3), 90, np.uint8)
GOOD = '[{"bbox_2d": [100, 100, 500, 500], "label": "it"}]'


class Scripted(BaseHTTPRequestHandler):
    """Answers as `server.script(request number, body)` says: (status, content, headers)."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((body, dict(self.headers)))
        status, content, headers = self.server.script(len(self.server.seen), body)
        if status == 0:  # the connection breaks
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(headers.get("x-length", len(content))))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_):
        pass


def completion(text, **message):
    found = {"choices": [{"message": {"role": "assistant", "content": text, **message}}]}
    return json.dumps({**found, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "WAIT", 0.0)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)
    served = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    served.daemon_threads = True
    served.seen, served.script = [], lambda n, body: (200, completion(GOOD), {})
    served.handle_error = lambda *_: None
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def speaker(server, **settings):
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return Config(url, "qwen3-vl-2b", **{"timeout": 5.0, **settings}).build()


def test_a_picture_and_a_text_go_there_and_an_answer_comes_back(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    reply = speaker(server).say([IMAGE], "where?", limit=9)
    body, headers = server.seen[0]
    parts = body["messages"][0]["content"]
    assert [p["type"] for p in parts] == ["image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert body["max_completion_tokens"] == 9 and headers["Authorization"] == "Bearer secret"
    assert (reply.text, reply.tokens_in, reply.tokens_out) == (GOOD, 7, 3)


def test_a_busy_server_is_asked_again_and_not_for_ever(server):
    server.script = lambda n, body: (200, completion(GOOD), {}) if n == 3 else (503, b"busy", {})
    assert speaker(server, retries=2).say([IMAGE], "x").text == GOOD
    server.script = lambda n, body: (429, b"{}", {"retry-after": "9999"})
    server.seen.clear()
    with pytest.raises(SpeakerError, match="429"):
        speaker(server, retries=2).say([IMAGE], "x")
    assert len(server.seen) == 3


def test_an_old_server_is_asked_in_its_own_words(server):
    def script(n, body):
        if "max_completion_tokens" in body:
            return 400, b'{"error": {"message": "unknown field max_completion_tokens"}}', {}
        return 200, completion(GOOD), {}

    server.script = script
    asked = speaker(server)
    assert asked.say([IMAGE], "x").text == GOOD and asked.say([IMAGE], "x").text == GOOD
    assert len(server.seen) == 3 and "max_tokens" in server.seen[-1][0]


def test_errors_are_one_line_and_never_hold_the_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    for status, word in ((401, "OPENAI_API_KEY"), (404, "no such address"), (400, "HTTP 400")):
        server.script = lambda n, body, s=status: (s, b'{"error": {"message": "no\\nway"}}', {})
        with pytest.raises(SpeakerError, match=word) as caught:
            speaker(server).say([IMAGE], "x")
        assert "\n" not in str(caught.value) and "secret-key" not in str(caught.value)


def test_redirects_are_not_followed(server):
    server.script = lambda n, body: (307, b"", {"location": "http://127.0.0.1:1/"})
    with pytest.raises(SpeakerError, match="HTTP 307"):
        speaker(server).say([IMAGE], "x")


def test_a_reply_without_end_is_cut(server, monkeypatch):
    monkeypatch.setattr(endpoint, "MOST_BYTES", 1000)
    server.script = lambda n, body: (200, b"x" * 5000, {})
    with pytest.raises(SpeakerError, match="longer than"):
        speaker(server, retries=0).say([IMAGE], "x")


def test_thinking_servers_are_heard(server):
    server.script = lambda n, body: (200, completion(None, reasoning_content=GOOD), {})
    assert speaker(server).say([IMAGE], "x").text == GOOD
    parts = [{"type": "text", "text": GOOD}]
    server.script = lambda n, body: (200, completion(parts), {})
    assert speaker(server).say([IMAGE], "x").text == GOOD


def test_a_request_that_comes_back_with_the_answer_is_no_part_of_it(server):
    request = "Where is the cat? If there is none, output []."
    server.script = lambda n, body: (200, completion(f"user: {request}\nassistant: {GOOD}"), {})
    assert speaker(server).say([IMAGE], request).text.endswith(GOOD)
    assert "none" not in speaker(server).say([IMAGE], request).text


FAULTS = [
    lambda rng: (0, b"", {}),
    lambda rng: (500, b"oops", {}),
    lambda rng: (429, b"{}", {"retry-after": rng.choice(["1", "soon", "-3", ""])}),
    lambda rng: (503, b"<html>", {}),
    lambda rng: (200, completion(GOOD)[: rng.randrange(1, 60)], {}),
    lambda rng: (200, b"", {}),
    lambda rng: (200, b"[]", {}),
    lambda rng: (200, b'{"choices": []}', {}),
    lambda rng: (200, b'{"choices": [{"message": {"content": 3}}]}', {}),
    lambda rng: (200, b'{"choices": "none", "usage": 5}', {}),
    lambda rng: (200, completion(""), {}),
    lambda rng: (200, completion(GOOD), {"x-length": 10_000}),  # less than was promised
    lambda rng: (400, b"\xff\xfe", {}),
]


def test_two_thousand_faulty_conversations(server):
    """Each is a first request and, where its answer cannot be read, a second one."""
    rng = random.Random(1)
    words = [
        lambda rng: (200, completion(rng.choice(["[]", "hm", "[{", GOOD[:20], "<think>"])), {}),
        lambda rng: (200, completion(GOOD), {}),
    ]
    server.script = lambda n, body: rng.choice([*FAULTS, *words * 6])(rng)
    asked = speaker(server, retries=1, timeout=2.0)
    statuses = {"found": 0, "absent": 0, "unparseable": 0}
    failed = 0
    for _ in range(2000):
        server.seen.clear()
        ledger = Ledger(2)
        reading, error = locate(asked, IMAGE, "the thing", ledger)
        assert ledger.calls <= 2 and len(server.seen) <= 4
        assert bool(error) == any("error" in e for e in ledger.log[-1:])
        last = [e.get("reply") for e in ledger.log if "reply" in e][-1:]
        if reading.status == "found":
            assert last == [GOOD] and len(reading.places) == 1
        if reading.status == "absent":
            assert last == ["[]"]
        statuses[reading.status] += 1
        failed += bool(error)
    assert all(count > 50 for count in statuses.values()) and failed > 50, (statuses, failed)


def test_malformed_addresses_are_refused():
    for url, model, word in (
        ("ftp://h/v1", "m", "no address"),
        ("nonsense", "m", "no address"),
        ("http://u:p@h/v1", "m", "name or password"),
        ("http://h/v1", "", "name a model"),
    ):
        with pytest.raises(InputError, match=word):
            Config(url, model).build()


def test_pictures_are_shaped_so_that_a_server_need_not_resize():
    family = families()["qwen2.5-vl"]
    given, seen = shaped(np.zeros((500, 777, 3), np.uint8), family, side=448, factor=28)
    assert given.shape[:2] == seen.given == seen.fed and not any(s % 28 for s in seen.given)
    given, seen = shaped(np.zeros((20, 4000, 3), np.uint8), families()["qwen3-vl"])
    assert given.shape[1] / given.shape[0] <= 4 and seen.covered == (20, 4000)
    given, seen = shaped(np.zeros((20, 40, 3), np.uint8), families()["seg-zero"])
    assert given.shape == (840, 840, 3) and seen.covered == (840, 840)
    given, seen = shaped(np.zeros((30, 40, 3), np.uint8), family, square=True)
    assert given.shape[:2] == (40, 40) and (given[30:] == 127).all()


def test_a_long_request_is_refused_before_it_is_sent(server):
    with pytest.raises(InputError, match="3000 words"):
        speaker(server).say([IMAGE], "word " * 3000)
    assert not server.seen


def test_a_batch_is_sent_at_the_same_time_and_an_error_is_an_answer(server):
    at_once, most, lock = [0], [0], threading.Lock()

    def script(n, body):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.1)
        with lock:
            at_once[0] -= 1
        text = body["messages"][0]["content"][1]["text"]
        return (200, completion(text.upper()), {}) if text != "c" else (404, b"{}", {})

    server.script = script
    replies = speaker(server, parallel=3).say_all([([IMAGE], t) for t in "abcdefg"])
    assert [r.text if not isinstance(r, SpeakerError) else None for r in replies] == [
        "A", "B", None, "D", "E", "F", "G"
    ]  # fmt: skip
    assert 1 < most[0] <= 3
