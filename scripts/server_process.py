"""A server for a measurement: started on a free port, awaited, and stopped at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def served(
    *options: str, patience: float = 120, page: bool = False
) -> Iterator[tuple[str, subprocess.Popen]]:
    """(address, process) of a running `reasonseg serve`, with its page where `page` is True.

    Raises `RuntimeError` where it does not answer within `patience` seconds.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "reasonseg.cli",
        "serve",
        "--port",
        port,
        *([] if page else ["--no-page"]),
        *options,
    ]
    # the small model, where no option names another
    server = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"REASONSEG_MODEL": "tiny", **os.environ},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, server, time.monotonic() + patience)
        yield address, server
    finally:
        server.terminate()
        server.wait(60)


def _wait(address: str, server: subprocess.Popen, until: float) -> None:
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(address + "/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"no server came up at {address}")
