"""Hashes of files, computed once: they are kept by path, size and time in the user's cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from reasonseg.runtime import cache_folder
from reasonseg.structures.images import atomic_write

CHUNK = 2**24


def hash_of(file: Path) -> str:
    """The SHA-256 hash of all bytes of a file.

    A hash that was kept is used where the file has the same size and time of change.
    """
    path = file.resolve()
    about = path.stat()
    stamp = {"path": str(path), "size": about.st_size, "time": about.st_mtime_ns}
    name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()
    kept = cache_folder() / "hashes" / f"{name[:32]}.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if {key: known[key] for key in stamp} == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not kept yet, or damaged
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(CHUNK):
            digest.update(part)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as aside:
            aside.write_text(json.dumps({**stamp, "sha256": digest.hexdigest()}), encoding="utf-8")
    except OSError:
        pass  # no cache: it is computed again the next time
    return digest.hexdigest()
