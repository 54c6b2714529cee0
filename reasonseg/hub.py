"""The Hugging Face hub: a repository's files as a local folder."""

from __future__ import annotations

from pathlib import Path

from reasonseg.errors import InputError


def download(name: str, revision: str | None, remedy: str) -> Path:
    """The local folder of a repository `owner/name`. Raises `InputError` ending in `remedy` where it cannot be had."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"nothing at {name}: it is neither a file or folder nor a hub id such as owner/name; {remedy}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(
            f"nothing at {name}: no such folder, and the hub did not give it ({reason}); {remedy}"
        ) from None


def located(source: str) -> Path:
    """A folder, or the local copy of a hub repository."""
    return Path(source) if Path(source).is_dir() else download(source, None, "name a folder or a hub id")
