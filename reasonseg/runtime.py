"""Processes that work together (`accelerate launch`, `torchrun`), or the one there is."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(hours=2)  # of the others, while one writes a large model


def is_distributed() -> bool:
    """Whether this process was launched with others; asks the environment, and loads nothing."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes():
    """This process among those it was launched with: accelerate's `PartialState`."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def process_share(items: list) -> list:
    """This process's part: every n-th item."""
    if not is_distributed():
        return items
    state = processes()
    return items[state.process_index :: state.num_processes]


def gather_rows(rows: list[Any]) -> list[Any]:
    """The rows of all processes, in all of them."""
    if not is_distributed():
        return rows
    from accelerate.utils import gather_object

    processes()
    return gather_object(rows)


def is_main_process() -> bool:
    """Whether this process is the one that writes what is written once."""
    return not is_distributed() or processes().is_main_process


def wait_for_everyone() -> None:
    """Until all have come here."""
    if is_distributed():
        processes().wait_for_everyone()


def quiet_libraries() -> None:
    """No progress bars for loading two files, no advice meant for developers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # it misses kernels for things we do not do
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
