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
    """A session, the time of its last use, and the locks that keep its turns in order."""

    session: Session
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # for turns of the API
    turn: threading.Lock = field(default_factory=threading.Lock)  # for turns of the page


class Conversations:
    """The open conversations by id: at most `limit`, together at most `budget` bytes.

    Beyond these limits, the conversation that was unused for longest is dropped first. A
    conversation that is unused for `seconds` is always dropped.
    """

    def __init__(self, limit: int = 256, seconds: float = 3600.0, budget: int = 2 * 2**30):
        self.limit, self.seconds, self.budget = limit, seconds, budget
        self.kept: OrderedDict[str, Conversation] = OrderedDict()
        self.guard = threading.RLock()

    def __len__(self) -> int:
        return len(self.kept)

    def open(self, session: Session) -> str:
        """Stores a session and returns its id, a random string that cannot be guessed."""
        name = secrets.token_urlsafe(18)
        with self.guard:
            self.kept[name] = Conversation(session, time.monotonic())
            self._sweep()
        return name

    def find(self, name: str) -> Conversation | None:
        """The conversation with an id; None where there is none, or it was dropped."""
        with self.guard:
            found = self.kept.get(name)
            if found is not None and time.monotonic() - found.used <= self.seconds:
                found.used = time.monotonic()
                self.kept.move_to_end(name)
            self._sweep()
            return self.kept.get(name)

    def close(self, name: str) -> bool:
        """Drops a conversation; False where there is none."""
        with self.guard:
            return self.kept.pop(name, None) is not None

    def _sweep(self) -> None:
        now = time.monotonic()
        while self.kept and now - next(iter(self.kept.values())).used > self.seconds:
            self.kept.popitem(last=False)
        held = sum(c.session.nbytes for c in self.kept.values())
        while len(self.kept) > 1 and (len(self.kept) > self.limit or held > self.budget):
            held -= self.kept.popitem(last=False)[1].session.nbytes
