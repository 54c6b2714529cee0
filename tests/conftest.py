import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def segmenter():
    """The embedded model."""
    from reasonseg import Segmenter

    return Segmenter.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def font():
    """Scenes need the colour-emoji font."""
    from reasonseg.errors import InputError
    from reasonseg.scenes.sprites import emoji_font

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


def oracle(*parts):
    """A file of the reference outputs, or a loud skip where they are absent."""
    path = SHARED.joinpath("oracle", *parts)
    if not path.exists():
        pytest.skip(f"LOUD: reference outputs are absent ({'/'.join(parts)}); parity is NOT tested here")
    return path
