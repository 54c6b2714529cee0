"""Masks at an image's own size."""

import numpy as np
import pytest
import torch

from reasonseg.segmenters import postprocess


@pytest.mark.parametrize("score", ["predicted", "foreground"])
@pytest.mark.parametrize("count", [0, 5])
def test_a_few_at_a_time_are_all_at_once(segmenter, monkeypatch, score, count):
    torch.manual_seed(0)
    logits, predicted = (
        torch.randn(count, segmenter.decoder.side, segmenter.decoder.side),
        2 * torch.rand(count),
    )
    given = segmenter.decoder.restore, logits, predicted, (60, 45), score
    whole, quality = postprocess.masks_and_scores(*given)
    laid_out = []
    monkeypatch.setattr(postprocess, "PIXELS", 2 * 60 * 45)
    few, again = postprocess.masks_and_scores(
        lambda part, size: laid_out.append(len(part)) or given[0](part, size), *given[1:]
    )
    assert laid_out == ([2, 2, 1] if count else [])
    assert (
        whole.shape == (count, 60, 45)
        and np.array_equal(whole, few)
        and np.array_equal(quality, again)
    )
    if count:
        full = segmenter.decoder.restore(logits, (60, 45))
        mean = torch.stack([m.sigmoid()[m > 0].mean() for m in full])
        expected = predicted.clamp(max=1) if score == "predicted" else mean
        np.testing.assert_allclose(quality, expected.numpy(), rtol=1e-5)
        assert np.array_equal(whole, (full > 0).numpy())
