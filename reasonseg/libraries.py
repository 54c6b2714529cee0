"""Keeps libraries from talking over us on a terminal. Called by the command line only, never on import."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """No progress bars for loading two files, no advice meant for developers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels for things we do not do
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
