import numpy as np
import torch
from parity import oracle

from reasonseg.nn import losses


def test_mask_losses_equal_lisa():
    data = np.load(oracle("D_metrics", "lisa_losses.npz"))
    logits, targets = (
        torch.from_numpy(data["logits"]).float(),
        torch.from_numpy(data["targets"]).float(),
    )
    for name, function in (("dice", losses.dice), ("bce", losses.bce)):
        each = function(logits, targets)
        assert torch.allclose(each.mean(), torch.tensor(float(data[name])), atol=2e-5), name


def test_iou_error_is_zero_for_a_perfect_guess():
    truth = torch.zeros(2, 8, 8)
    truth[0, :4] = 1
    logits = torch.full((2, 8, 8), -3.0)
    logits[0, :2] = 3
    predicted = torch.tensor([0.5, 1.0])  # half marked; nothing marked where nothing is there
    assert torch.allclose(losses.iou_error(predicted, logits, truth), torch.zeros(2))
    assert losses.iou_error(predicted + 0.1, logits, truth).allclose(torch.full((2,), 0.01))


def test_losses_are_one_a_mask():
    logits, truth = torch.randn(5, 6, 7), (torch.rand(5, 6, 7) > 0.5)
    for function in (losses.dice, losses.bce):
        together = function(logits, truth)
        assert together.shape == (5,)
        assert torch.allclose(together[2:3], function(logits[2:3], truth[2:3]))


def test_void_pixels_have_no_loss():
    logits = torch.randn(1, 8, 8, requires_grad=True)
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, :4, :4] = True
    void = torch.zeros(8, 8, dtype=torch.bool)
    void[5:] = True

    def total(values):
        found = losses.mask_losses(lambda x, size: x, values, torch.zeros(1), [truth], [0], [void])
        return found["bce"] + found["dice"] + found["iou"]

    loss = total(logits)
    loss.backward()
    assert not logits.grad[0, 5:].any() and logits.grad[0, :5].any()
    changed = logits.detach().clone()
    changed[0, 5:] = 9.0
    assert total(changed) == loss
