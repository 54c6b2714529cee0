"""Where model folders are (package, disk, Hugging Face hub), and how a folder is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reasonseg.errors import InputError

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"
PACKAGED = {
    "tiny": EMBEDDED,
    "photo": EMBEDDED.with_name("photo"),
    "tiny-seggpt": EMBEDDED.with_name("tiny_seggpt"),
}
# what `photo` is before its training; a model that its folder of changes names
PARTS = {"photo-parts": EMBEDDED.with_name("photo_parts")}


def download(
    name: str, revision: str | None, remedy: str, only: tuple[str, ...] | None = None
) -> Path:
    """The local folder of a hub repository `owner/name`.

    `only` are patterns of the files to download (None: all). Raises `InputError`, whose message
    ends with `remedy`, where the download fails.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"nothing at {name}: it is neither a file or folder nor a hub id such as owner/name; "
            f"{remedy}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(only) if only else None)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (
            str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        )
        raise InputError(
            f"nothing at {name}: no such folder, and the download from the hub failed ({reason}); "
            f"{remedy}"
        ) from None


def local_folder(source: str) -> Path:
    """A folder, or the local copy of a hub repository. Raises `InputError` without either."""
    return (
        Path(source)
        if Path(source).is_dir()
        else download(source, None, "name a folder or a hub id")
    )


def model_path(
    source: str | Path | None, revision: str | None = None, only: tuple[str, ...] | None = None
) -> Path:
    """The folder or file of a model.

    The names in `PACKAGED` are models in the package, and None is `tiny`. A hub id gives a local
    copy, with `only` (patterns) of its files. Raises `InputError` where nothing has that name.
    """
    if source is None:
        return EMBEDDED
    place = Path(source)
    if place.exists():
        return _run_model(place)
    if (found := {**PACKAGED, **PARTS}.get(str(source))) is not None:
        return found
    remedy = (
        f"give a folder, a hub id or a packaged model ({', '.join(PACKAGED)}) as "
        "--model, or as start in a config"
    )
    return download(str(source), revision, remedy, only)


def _run_model(place: Path) -> Path:
    """The folder itself; of a folder of a training run, its last model."""
    inside = place / "model"
    a_model = any((place / name).exists() for name in ("settings.yaml", "changes.yaml"))
    return inside if inside.is_dir() and not a_model and (place / "run.json").is_file() else place


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which replaces `folder` at the end.

    Files of the old folder whose names are not in the new one are kept.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if folder.exists():
            for extra in folder.iterdir():  # a README or a model card written by hand is kept
                if not (aside / extra.name).exists():
                    (shutil.copytree if extra.is_dir() else shutil.copy2)(extra, aside / extra.name)
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def from_folder(cls: type, folder: Path, allow: Sequence[str] = (), **options) -> Any:
    """`cls.from_pretrained(folder)`, checked.

    Raises `InputError` where weights do not fit and no prefix in `allow` covers their keys, or
    where a package is missing that the model needs.
    """
    try:
        model, info = cls.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except ImportError as error:
        raise InputError(f"{folder}: {' '.join(str(error).split())}") from None
    problems = [("missing", key, "") for key in info["missing_keys"]]
    problems += [("left over", key, "") for key in info["unexpected_keys"]]
    problems += [
        ("reshaped", key, f" is {list(has)}, not {list(wants)}")
        for key, has, wants in info["mismatched_keys"]
    ]
    refuse(problems, folder, allow)
    return model


def refuse(problems: Sequence[tuple[str, str, str]], folder: Path, allow: Sequence[str]) -> None:
    """Raises `InputError` that lists the problems (what, key, detail).

    Problems whose key begins with a prefix in `allow` are ignored.
    """
    left = sorted(p for p in problems if not p[1].startswith(tuple(allow)))
    if left:
        listed = "; ".join(f"{what}: {key}{detail}" for what, key, detail in left[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise InputError(
            f"{folder}: weights do not fit: {listed}{more}; allow=(prefix, ...) ignores keys with "
            "that prefix"
        )
