"""Functions for distributed runs (`accelerate launch`, `torchrun`) and for a single process."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

# how long the other processes wait while one writes a large model
PATIENCE = timedelta(hours=2)


def is_distributed() -> bool:
    """Whether this process runs with others. Reads the environment only; imports no library."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Index of this process on its machine, from 0. It is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes():
    """The state of this process in the group: accelerate's `PartialState`."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def process_share(items: list) -> list:
    """The items of this process: every n-th item, where n is the number of processes."""
    if not is_distributed():
        return items
    state = processes()
    return items[state.process_index :: state.num_processes]


def gather_rows(rows: list[Any]) -> list[Any]:
    """The rows of all processes; every process gets all of them."""
    if not is_distributed():
        return rows
    from accelerate.utils import gather_object

    processes()
    return gather_object(rows)


def is_main_process() -> bool:
    """Whether this process is the main one, which writes the files that are written once."""
    return not is_distributed() or processes().is_main_process


def wait_for_everyone() -> None:
    """Waits until all processes have reached this call."""
    if is_distributed():
        processes().wait_for_everyone()


def quiet_libraries() -> None:
    """Turns off the loading progress bars and the developer warnings of the libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # it warns about missing kernels that this package does not use
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def cache_folder() -> Path:
    """The folder of what is kept for a user between runs: `$XDG_CACHE_HOME/reasonseg`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonseg"
