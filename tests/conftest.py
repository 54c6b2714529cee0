import json
import os
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook
from parity import PARITY, TITLE, oracle

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("REASONSEG_MODEL", "tiny")  # where a test names no model
# shapes and types of the corridor are checked at every call while tests run
CHECKED = (
    "backbones",
    "prompters",
    "decoders",
    "segmenters",
    "nn.losses",
    "nn.reference_attention",
)
install_import_hook([f"reasonseg.{name}" for name in CHECKED], "typecheck.check")


@pytest.fixture(scope="session")
def segmenter():
    """The embedded model."""
    from reasonseg import Segmenter

    return Segmenter.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def font():
    """Scenes need the colour-emoji font."""
    from reasonseg.datasets.synthetic.sprites import emoji_font
    from reasonseg.errors import InputError

    try:
        return emoji_font()
    except InputError as error:
        pytest.skip(f"LOUD: drawn scenes are not tested here: {error}")


@pytest.fixture(scope="session")
def scenes(font):
    """A few validation scenes, one a level."""
    from reasonseg.datasets.scenes import Config

    data = Config("val", 14, size=224).build()
    return [data[i] for i in range(14)]


@pytest.fixture
def picture():
    """A small picture that is nothing in particular."""
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def results():
    """What the reference's data loaders returned."""
    return json.loads(oracle("E_data", "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def masks():
    """The masks that `results` name."""
    return np.load(oracle("E_data", "masks.npz"))


def pytest_addoption(parser):
    """`--parity-table FILE` writes what the parity tests measured."""
    parser.addoption(
        "--parity-table",
        metavar="FILE",
        help="write the differences to the reference outputs as a table",
    )


def pytest_sessionfinish(session):
    """Writes the table where it was asked for."""
    file = session.config.getoption("--parity-table")
    if file:
        rows = [
            f"| {case} | {what} | {found:.1e} | {allowed:.0e} |"
            for case, what, found, allowed in PARITY
        ]
        head = [
            TITLE,
            "",
            "| case | what is compared | largest difference | allowed |",
            "|---|---|---|---|",
        ]
        Path(file).write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


# files that take longest, in seconds on one core: they start first, so that no worker ends alone
LONGEST = (
    "training/test_processes", "serving/test_ray_annotate", "nn/test_quantization",
    "training/test_finetune", "training/test_validation", "nn/test_generation",
    "training/test_run", "checkpoints/test_delta", "cli/test_every_model", "test_examples",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Files in the order in which they are to start."""

    def rank(item) -> int:
        path = item.path.as_posix()
        places = [k for k, name in enumerate(LONGEST) if path.endswith(f"tests/{name}.py")]
        return places[0] if places else len(LONGEST)

    items.sort(key=rank)  # stable: within a file and elsewhere the order stays
