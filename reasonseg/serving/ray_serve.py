"""The HTTP app on Ray Serve: one front end (`Door`) and replicas of the model (`Model`).

The front end reads requests and holds conversations. The number of replicas follows the load
(Serve's autoscaling), and a replica answers waiting requests as a batch (Serve's batching).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import ray
from ray import serve

from reasonseg.errors import InputError
from reasonseg.serving.engine import Busy, Job, Late, renewed
from reasonseg.serving.limits import Limits
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query

LINGER = 0.01  # seconds that a batch waits for more requests
PER_REPLICA = 2  # batches in the queue of a replica before another replica is started


class Model:
    """One replica, with one segmenter."""

    def __init__(self, keywords: dict[str, Any], threads: int):
        import torch

        from reasonseg import Segmenter
        from reasonseg.runtime import quiet_libraries

        quiet_libraries()
        torch.set_num_threads(threads)
        keywords = dict(keywords)
        self.segmenter = Segmenter.from_pretrained(keywords.pop("source", None), **keywords)
        self.lock = threading.Lock()

    async def about(self) -> dict[str, Any]:
        """The facts about the model that the front end needs."""
        settings = self.segmenter.settings
        return {"notice": settings.notice, "memory": settings.memory, "about": settings.about}

    async def answer(self, query: Query, options: dict[str, Any]) -> Answer:
        """The answer to one query; it is computed in a batch with others."""
        found = await self.batched((query, options))
        if isinstance(found, Exception):
            raise found
        return found

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=LINGER)
    async def batched(self, items: list[tuple[Query, dict]]) -> list[Answer | Exception]:
        """The answers, or the errors, of a batch in order."""
        return await asyncio.to_thread(self.answers, items)

    def answers(self, items: list[tuple[Query, dict]]) -> list[Answer | Exception]:
        """The answers or errors in order. Items with equal options share a batch.

        Where a batch fails, each of its items is answered alone.
        """
        groups: dict[tuple, list[int]] = {}
        for i, (_, options) in enumerate(items):
            groups.setdefault(tuple(sorted(options.items())), []).append(i)
        found: dict[int, Answer | Exception] = {}
        with self.lock:
            for mine in groups.values():
                found |= self._together([(i, *items[i]) for i in mine])
        return [found[i] for i in range(len(items))]

    def _together(self, items: list[tuple[int, Query, dict]]) -> dict[int, Answer | Exception]:
        try:
            answers = self.segmenter.batch([query for _, query, _ in items], **items[0][2])
            return {i: answer for (i, _, _), answer in zip(items, answers, strict=True)}
        except Exception as error:
            if len(items) == 1:
                return {items[0][0]: error}
            return {k: v for item in items for k, v in self._together([item]).items()}


class Remote:
    """An `Engine` whose models are replicas; at most `waiting` queries are open."""

    def __init__(
        self,
        handle,
        about: dict[str, Any],
        waiting: int,
        observe: Callable[[str, float], None] | None = None,
    ):
        self.handle, self.waiting = handle, waiting
        self.observe = observe or (lambda event, value: None)
        self.segmenter = SimpleNamespace(settings=SimpleNamespace(**about))
        self.pool = ThreadPoolExecutor(waiting, thread_name_prefix="replica")
        self.under_way, self.lock = 0, threading.Lock()
        self.open = self.alive = True

    @property
    def depth(self) -> int:
        """Number of open queries."""
        return self.under_way

    def submit(
        self,
        query: Query,
        *,
        timeout: float = 60.0,
        on_text: Callable[[str], None] | None = None,
        **options,
    ) -> Job:
        """Sends a query to a replica and returns its job, whose `answer` is a future.

        Raises `Busy` where `waiting` queries are open already.
        """
        with self.lock:
            if not self.open or self.under_way >= self.waiting:
                raise Busy(1.0)
            self.under_way += 1
        job = Job(query, options, time.monotonic() + timeout, on_text)
        self.pool.submit(self._work, job, timeout)
        return job

    def _work(self, job: Job, timeout: float) -> None:
        began = time.monotonic()
        try:
            if not job.answer.set_running_or_notify_cancel():
                return
            answer = self.handle.answer.remote(job.query, job.options).result(timeout_s=timeout)
            if job.on_text is not None:
                job.on_text(answer.text)
            job.answer.set_result(answer)
        except TimeoutError:
            job.answer.set_exception(Late("the answer took too long"))
        except Exception as error:
            cause = getattr(error, "cause", error)
            job.answer.set_exception(renewed(cause) if isinstance(cause, InputError) else error)
        finally:
            with self.lock:
                self.under_way -= 1
            self.observe("work", time.monotonic() - began)

    def stop(self, timeout: float | None = 30.0) -> bool:
        """Accepts no more queries, and finishes those accepted."""
        self.open = False
        self.pool.shutdown(wait=True)
        return True


class Door:
    """The front end: reads requests, holds conversations, and sends queries to the replicas."""

    def __init__(
        self,
        model,
        limits: Limits,
        token: str | None,
        waiting: int,
        page: bool,
        origins: tuple[str, ...],
        root_path: str,
    ):
        self.model, self.limits, self.token, self.waiting = model, limits, token, waiting
        self.page, self.origins, self.root_path = page, origins, root_path

    async def __serve_build_asgi_app__(self):
        """The app of `serving/api.py`, with the page."""
        from reasonseg.serving.api import make_app

        about = await self.model.about.remote()
        app = make_app(
            None,
            limits=self.limits,
            token=self.token,
            engine=Remote(self.model, about, self.waiting),
            origins=self.origins,
        )
        if self.page:
            from reasonseg.serving.page import mount

            app = mount(app, self.token, self.root_path)
        return app


def run(
    keywords: dict[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    token: str | None = None,
    waiting: int = 64,
    replicas: int = 4,
    page: bool = True,
    address: str | None = None,
    origins: tuple[str, ...] = (),
    root_path: str = "",
    blocking: bool = True,
) -> None:
    """Serves a model with one to `replicas` replicas.

    `keywords` are those of `Segmenter.from_pretrained`, with `source`. `waiting` is the largest
    number of open queries. `origins` and `root_path` are those of `make_app` and `mount`. `address`
    is the address of a Ray cluster (None: this machine). Returns at once where `blocking` is False.
    """
    if not ray.is_initialized():
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    most = max(min(replicas, gpus or max(cpus - 1, 1)), 1)
    model = serve.deployment(Model).options(
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if gpus else 0},
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": most,
            "target_ongoing_requests": 16 * PER_REPLICA,
        },
        max_ongoing_requests=16 * PER_REPLICA * 2,
    )
    door = serve.deployment(serve.ingress()(Door)).options(
        ray_actor_options={"num_cpus": 0},
        num_replicas=1,
        max_ongoing_requests=4 * waiting,
        graceful_shutdown_timeout_s=30,
    )
    serve.start(http_options={"host": host, "port": port})
    threads = max(cpus // most, 1)
    bound = door.bind(
        model.bind(keywords, threads),
        limits or Limits(),
        token,
        waiting,
        page,
        origins,
        root_path,
    )
    serve.run(bound, name="reasonseg", route_prefix="/", blocking=blocking)
