import torch

from recipes.embedded.codes import Coder
from recipes.embedded.fit_coder import fitted


def test_a_coder_is_found_again_from_what_it_said():
    torch.manual_seed(0)
    coder = Coder(48, 32)
    torch.nn.init.normal_(coder.norm.bias)
    features = torch.randn(800, 1, 48)
    said = coder(features, torch.ones(800, 1)).detach()
    found, cosine = fitted(
        torch.nn.functional.layer_norm(features[:, 0], (48,)), said + 0.05 * torch.randn_like(said)
    )
    unseen = torch.randn(100, 1, 48)
    again, true = found(unseen, torch.ones(100, 1)), coder(unseen, torch.ones(100, 1))
    assert cosine > 0.95 and torch.nn.functional.cosine_similarity(again, true, dim=-1).min() > 0.95
