"""Conversations of a server: found by their id, limited in number and age."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from reasonseg.serving.session import Session


@dataclass
class Conversation:
    """A session and the lock that keeps its turns in order."""

    session: Session
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of the API's turns
    turn: threading.Lock = field(default_factory=threading.Lock)  # of the page's


class Conversations:
    """At most `limit`, together of at most `budget` bytes: the one unused for longest goes first.
    Those unused for `seconds` go anyway.
    """

    def __init__(self, limit: int = 256, seconds: float = 3600.0, budget: int = 2 * 2**30):
        self.limit, self.seconds, self.budget = limit, seconds, budget
        self.kept: OrderedDict[str, Conversation] = OrderedDict()
        self.guard = threading.RLock()

    def __len__(self) -> int:
        return len(self.kept)

    def open(self, session: Session) -> str:
        """Keeps a session; returns its id, which nobody can guess."""
        name = secrets.token_urlsafe(18)
        with self.guard:
            self.kept[name] = Conversation(session, time.monotonic())
            self._sweep()
        return name

    def find(self, name: str) -> Conversation | None:
        """The conversation of an id, None where there is none (any more)."""
        with self.guard:
            found = self.kept.get(name)
            if found is not None and time.monotonic() - found.used <= self.seconds:
                found.used = time.monotonic()
                self.kept.move_to_end(name)
            self._sweep()
            return self.kept.get(name)

    def close(self, name: str) -> bool:
        """Forgets one; False where there was none."""
        with self.guard:
            return self.kept.pop(name, None) is not None

    def _sweep(self) -> None:
        now = time.monotonic()
        while self.kept and now - next(iter(self.kept.values())).used > self.seconds:
            self.kept.popitem(last=False)
        held = sum(c.session.nbytes for c in self.kept.values())
        while len(self.kept) > 1 and (len(self.kept) > self.limit or held > self.budget):
            held -= self.kept.popitem(last=False)[1].session.nbytes
