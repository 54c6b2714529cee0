"""One model thread with a bounded queue; requests that wait together are one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from reasonseg.errors import InputError
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query


class Busy(RuntimeError):
    """The queue is full, or the engine is stopping. Try again after `retry` seconds."""

    def __init__(self, retry: float):
        super().__init__(f"too many requests wait; try again in {retry:.0f} s")
        self.retry = retry


class Late(RuntimeError):
    """The deadline passed before the request was answered."""


@dataclass
class Job:
    """A request: its `query`, the `options` of `Segmenter.batch`, and the future of its answer.

    `deadline` and `queued` are times of `time.monotonic`. `on_text` is called with the text so far
    during generation.
    """

    query: Query
    options: dict[str, Any]
    deadline: float
    on_text: Callable[[str], None] | None = None
    answer: Future[Answer] = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> tuple:
        """The options as a key: jobs with the same key can share a batch."""
        return tuple(sorted(self.options.items()))

    def drop(self) -> None:
        """Cancels the job where it still waits, and lets its images go."""
        if self.answer.cancel():
            self.__dict__.pop("query", None)


def renewed(error: Exception) -> Exception:
    """A copy of an `InputError` without its traceback; any other error unchanged.

    The frames of the traceback hold the query, its future and so the error: a reference cycle that
    would keep images and features in memory until the next garbage collection. Other errors keep
    their traceback for the log.
    """
    return InputError(*error.args) if isinstance(error, InputError) else error


class Engine:
    """Answers queries one batch at a time, on its own thread.

    A batch has at most `batch` queries. At most `waiting` queries wait; beyond that `submit` raises
    `Busy`. A batch waits at most `linger` seconds for more queries. `observe(event, value)` is
    called for the events `batch` (its size), `wait` and `work` (seconds).
    """

    def __init__(
        self,
        segmenter,
        *,
        batch: int = 16,
        waiting: int = 64,
        linger: float = 0.005,
        observe: Callable[[str, float], None] | None = None,
    ):
        self.segmenter, self.size, self.linger = segmenter, batch, linger
        self.jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self.observe = observe or (lambda event, value: None)
        self.seconds = 0.1  # smoothed time per query
        self.open, self.alive = True, True
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    def submit(
        self,
        query: Query,
        *,
        timeout: float = 60.0,
        on_text: Callable[[str], None] | None = None,
        **options,
    ) -> Job:
        """Queues a query and returns its job, whose `answer` is a future.

        The answer is a `Late` error where the job still waits after `timeout` seconds. `options`
        are those of `Segmenter.batch`. Raises `Busy` where the queue is full or the engine stops.
        """
        job = Job(query, options, time.monotonic() + timeout, on_text)
        try:
            if not self.open:
                raise queue.Full
            self.jobs.put_nowait(job)
        except queue.Full:
            raise Busy(max(1.0, self.jobs.qsize() * self.seconds)) from None
        return job

    @property
    def depth(self) -> int:
        """Number of waiting queries."""
        return self.jobs.qsize()

    def stop(self, timeout: float | None = 30.0) -> bool:
        """Accepts no more queries and finishes those accepted; True where it ends within `timeout`.

        `timeout` is in seconds; None waits without limit.
        """
        self.open = False
        self.jobs.put(None)
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _run(self) -> None:
        held: list[Job] = []
        while self._round(held):
            pass
        self.alive = False

    def _round(self, held: list[Job]) -> bool:
        """Answers one batch; False at the end. `held` keeps a job that the batch cannot share.

        No name of the caller holds a job while it waits for the next one, so its images are let go.
        """
        job = held.pop() if held else self.jobs.get()
        if job is None:
            return False
        group, other, ended = self._gather(job)
        held += [other] if other else []
        self._answer([j for j in group if self._wanted(j)])
        if ended:
            self.jobs.put(None)
        return True

    def _gather(self, first: Job) -> tuple[list[Job], Job | None, bool]:
        """(jobs for one batch, the next job if it cannot share it, whether to stop)."""
        group, until = [first], time.monotonic() + self.linger
        while len(group) < self.size:
            try:
                job = self.jobs.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            if job is None:
                return group, None, True
            if job.kind != first.kind:
                return group, job, False
            group.append(job)
        return group, None, False

    def _wanted(self, job: Job) -> bool:
        """Whether a job is still needed: not cancelled and not late."""
        if not job.answer.set_running_or_notify_cancel():
            return False
        if time.monotonic() > job.deadline:
            job.answer.set_exception(Late("the deadline passed while the request waited"))
            return False
        return True

    def _answer(self, group: list[Job]) -> None:
        if not group:
            return
        began = time.monotonic()
        for job in group:
            self.observe("wait", began - job.queued)
        self.observe("batch", len(group))
        try:
            answers = self._batch(group)
        except Exception as error:
            if len(group) == 1:
                group[0].answer.set_exception(renewed(error))
                return
            for job in group:  # one of them failed: answer each alone
                self._answer([job])
            return
        for job, answer in zip(group, answers, strict=True):
            job.answer.set_result(answer)
        each = (time.monotonic() - began) / len(group)
        self.seconds += 0.1 * (each - self.seconds)
        self.observe("work", time.monotonic() - began)

    def _batch(self, group: list[Job]) -> list[Answer]:
        if not any(job.on_text for job in group):
            return self.segmenter.batch([job.query for job in group], **group[0].options)

        def hand_on(i: int, text: str) -> None:
            if (on_text := group[i].on_text) is not None:
                on_text(text)

        return self.segmenter.batch(
            [job.query for job in group], on_text=hand_on, **group[0].options
        )
