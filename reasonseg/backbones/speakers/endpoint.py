"""A speaker behind an OpenAI-compatible server (vLLM, SGLang, Ollama, llama.cpp, `transformers
serve`): chat completions, pictures as data URLs.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from reasonseg.backbones.speakers.base import Reply, SpeakerError, checked_request, shaped
from reasonseg.backbones.speakers.places.family import Family, family_of, framed
from reasonseg.backbones.speakers.places.frames import Seen
from reasonseg.backbones.speakers.probing import with_probe
from reasonseg.errors import InputError

MOST_BYTES = 4 * 2**20  # of a reply
WAIT = 0.5  # seconds before the first retry; doubled for each further one
LONGEST_WAIT = 20.0  # seconds, also where a server asks for more
SHORTEST = 20  # characters of a request that is looked for in its own reply
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)


@dataclass(frozen=True)
class Config:
    """`url`: the base of the server, such as `http://127.0.0.1:8000/v1`. `model`: its name there.

    `key`: the environment variable that holds the key (empty or unset: none is sent). `timeout`:
    seconds for a whole reply. `retries`: how often a busy server is asked again. `square`: pictures
    are padded to squares (llama.cpp and Ollama with Qwen3-VL). `side`: larger pictures are made
    smaller first (0: never). `parallel`: requests of a batch that are sent at the same time.
    `family`, `frame`, `order`: how the model speaks of places, where its name does not say it.
    """

    url: str = ""
    model: str = ""
    key: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 2
    square: bool = False
    side: int = 1536
    parallel: int = 4
    family: str = ""
    frame: str = ""
    order: str = ""

    def build(self, device: Any = None, dtype: Any = None) -> Endpoint:
        """The speaker. Nothing is asked yet. Raises `InputError` for a malformed address."""
        return Endpoint(self)

    @classmethod
    def example(cls) -> Config:
        """One that is never asked, for tests."""
        return cls("http://127.0.0.1:9/v1", "qwen3-vl-tiny", retries=0, timeout=1.0)


class Endpoint:
    """Chat completions of one model on one server."""

    def __init__(self, config: Config):
        parts = urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"endpoint {config.url!r} is no address; write http://HOST:PORT/v1#MODEL"
            )
        if parts.username or parts.password:
            raise InputError(
                "endpoint: the address holds a name or password; put the key into the environment "
                f"({config.key}) instead"
            )
        if not config.model:
            raise InputError(f"endpoint {config.url}: name a model, as {config.url}#MODEL")
        self.config, self.name = config, config.model
        family = framed(family_of(config.model, named=config.family), config.frame, config.order)
        self.family: Family = with_probe(family, self.name)
        self.old_limit = False  # whether the server knows only `max_tokens`

    @property
    def fingerprint(self) -> str:
        """The model's name, the server, and how it is asked."""
        family = self.family
        return f"{self.name}@{self.config.url}-{family.name}-{family.frame}-{family.order}"

    def shape(self, image: np.ndarray) -> tuple[np.ndarray, Seen]:
        """As `Speaker.shape`; pictures are no larger than the settings say."""
        config = self.config
        return shaped(image, self.family, config.square, config.side, self.family.factor)

    def say(
        self,
        pictures: Sequence[np.ndarray],
        text: str,
        *,
        limit: int = 512,
        temperature: float = 0.0,
        plain: bool = False,
    ) -> Reply:
        """As `Speaker.say`."""
        checked_request(text)
        content: list[dict] = [
            {"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures
        ]
        content.append({"type": "text", "text": text})
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "temperature": temperature,
            "stream": False,
            "max_tokens" if self.old_limit else "max_completion_tokens": limit,
        }
        reply = _reply(self._asked(body), self._where)
        # servers whose template does not fit the model give the whole conversation back; the form
        # that the request asks for would be read as the answer
        if len(text) > SHORTEST and text in reply.text:
            reply = replace(reply, text=reply.text.rpartition(text)[2])
        return reply

    def say_all(
        self, asked: Sequence[tuple[Sequence[np.ndarray], str]], **options: Any
    ) -> list[Reply | SpeakerError]:
        """Answers several (pictures, text), `parallel` at the same time, with the options of `say`;
        an error is the answer where there is none.
        """

        def one(request: tuple[Sequence[np.ndarray], str]) -> Reply | SpeakerError:
            try:
                return self.say(*request, **options)
            except SpeakerError as error:
                return error

        assert self._client is not None  # made once, before there are threads
        with ThreadPoolExecutor(max(self.config.parallel, 1)) as threads:
            return list(threads.map(one, asked))

    @property
    def _where(self) -> str:
        return f"endpoint {self.config.url} ({self.name})"

    def _asked(self, body: dict[str, Any]) -> Any:
        """The JSON of a reply; a busy server is asked again. Raises `SpeakerError`."""
        problem = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(min(self._pause * 2 ** (attempt - 1), LONGEST_WAIT))
            status, content, problem = self._request(body)
            if status == 400 and b"max_completion_tokens" in content and not self.old_limit:
                self.old_limit = True  # an old server; it is asked again at once
                body["max_tokens"] = body.pop("max_completion_tokens")
                status, content, problem = self._request(body)
            if status == 200:
                try:
                    return json.loads(content)
                except (ValueError, RecursionError):
                    problem = f"its reply is no JSON: {content[:80]!r}"
            elif status and status not in BUSY:
                break
        raise SpeakerError(f"{self._where}: {problem}")

    _pause = WAIT

    @cached_property
    def _client(self) -> Any:
        """One client for all requests: to make one takes longer than to use it."""
        import httpx

        return httpx.Client(timeout=self.config.timeout, follow_redirects=False)

    def _request(self, body: dict[str, Any]) -> tuple[int, bytes, str]:
        """(HTTP status or 0, content, what went wrong)."""
        import httpx

        key = os.environ.get(self.config.key, "") if self.config.key else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = self.config.url.rstrip("/") + "/chat/completions"
        deadline = time.monotonic() + self.config.timeout
        try:
            with self._client.stream("POST", url, json=body, headers=headers) as response:
                content = b""
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        return 0, b"", f"its reply is longer than {MOST_BYTES} bytes"
                    if time.monotonic() > deadline:
                        return 0, b"", f"no whole reply in {self.config.timeout:g} s"
                status = response.status_code
                after = response.headers.get("retry-after", "")
                self._pause = float(after) if after.isdigit() else WAIT
        except httpx.ConnectError as error:
            return (
                0,
                b"",
                f"it cannot be reached ({_short(error)}); start the server, or correct the address",
            )
        except httpx.TimeoutException:
            return 0, b"", f"no reply in {self.config.timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            return 0, b"", f"the connection broke ({_short(error)})"
        return status, content, self._told(status, content)

    def _told(self, status: int, content: bytes) -> str:
        if status == 200:
            return ""
        said = content[:200].decode("utf-8", "replace")
        try:
            found = json.loads(content).get("error", "")
            said = str(found.get("message", found) if isinstance(found, dict) else found)[:200]
        except (ValueError, AttributeError, RecursionError):
            pass
        said = " ".join(said.split())
        if status in (401, 403):
            return f"the key was refused (HTTP {status}); set {self.config.key or 'a key'}"
        if status == 404:
            return f"HTTP 404: no such address or model ({said})"
        return f"HTTP {status}: {said}"


def data_url(picture: np.ndarray) -> str:
    """A picture as a PNG in a data URL."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _reply(found: Any, where: str) -> Reply:
    """The text of a chat completion. Raises `SpeakerError` where it has another form."""
    try:
        message = found["choices"][0]["message"]
        content = message.get("content")
        if isinstance(content, list):  # parts
            content = "".join(p.get("text", "") for p in content if isinstance(p, dict))
        if not content:  # some servers put everything there
            content = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(content, str):
            raise TypeError("content is no text")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise SpeakerError(
            f"{where}: its reply has no choices[0].message.content ({type(error).__name__})"
        ) from None
    usage = found.get("usage") if isinstance(found, dict) else None
    counts = [
        int(usage[k]) if isinstance(usage, dict) and isinstance(usage.get(k), int) else None
        for k in ("prompt_tokens", "completion_tokens")
    ]
    return Reply(content, None, counts[0], counts[1])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
