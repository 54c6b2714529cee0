"""Conversations of a server: found by their id, limited in number and age."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from reasonseg.serve.session import Session


@dataclass
class Conversation:
    """A session and the lock that keeps its turns in order."""

    session: Session
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of the API's turns
    turn: threading.Lock = field(default_factory=threading.Lock)  # of the page's


class Conversations:
    """At most `limit`, the one unused for longest goes first; those unused for `seconds` go anyway."""

    def __init__(self, limit: int = 256, seconds: float = 3600.0):
        self.limit, self.seconds = limit, seconds
        self.kept: OrderedDict[str, Conversation] = OrderedDict()
        self.guard = threading.RLock()

    def __len__(self) -> int:
        return len(self.kept)

    def open(self, session: Session) -> str:
        """Keeps a session; returns its id, which nobody can guess."""
        name = secrets.token_urlsafe(18)
        with self.guard:
            self._sweep()
            while len(self.kept) >= self.limit:
                self.kept.popitem(last=False)
            self.kept[name] = Conversation(session, time.monotonic())
        return name

    def find(self, name: str) -> Conversation | None:
        """The conversation of an id, None where there is none (any more)."""
        with self.guard:
            self._sweep()
            found = self.kept.get(name)
            if found is not None:
                found.used = time.monotonic()
                self.kept.move_to_end(name)
            return found

    def close(self, name: str) -> bool:
        """Forgets one; False where there was none."""
        with self.guard:
            return self.kept.pop(name, None) is not None

    def _sweep(self) -> None:
        now = time.monotonic()
        while self.kept and now - next(iter(self.kept.values())).used > self.seconds:
            self.kept.popitem(last=False)
