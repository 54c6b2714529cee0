"""What reference implementations printed, and by how much ours differs."""

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared"


def oracle(*parts):
    """A file of the reference outputs, or a loud skip where they are absent."""
    path = SHARED.joinpath("oracle", *parts)
    if not path.exists():
        pytest.skip(
            f"LOUD: reference outputs are absent ({'/'.join(parts)}); parity is NOT tested here"
        )
    return path


TITLE = """# Parity with the reference implementations

Written by `pytest tests/checkpoints/released tests/decoders/test_seggpt.py --parity-table
docs/explanation/parity.md` (float32, CPU), from what the reference implementations printed on tiny
random weights in the released layouts. `B ...` is SAM alone, `eval_*` LISA's chat path, `forward_*`
its teacher-forced one, `C ...` VLP-SAM step by step, `F ...` SegGPT (`train_*` with random patches
masked; its gradient norms agree too), `H ...` Sa2VA. Token ids are compared too, and are equal in
every case. The reference of `H` ran with Pillow 13; older ones resize one picture ("port") with
other rounding, so its values differ by more.
"""
# (case, what is compared, largest difference, allowed), for docs/explanation/parity.md
PARITY: list[tuple[str, str, float, float]] = []


def close(case, what, found, expected, atol=2e-4, rtol=0.0):
    """Asserts that arrays agree, and notes by how much they differ."""
    found = found.numpy(force=True) if hasattr(found, "numpy") else np.asarray(found)
    expected = np.asarray(expected)
    difference = float(np.abs(found - expected).max()) if expected.size else 0.0
    PARITY.append((case, what, difference, atol))
    np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)
