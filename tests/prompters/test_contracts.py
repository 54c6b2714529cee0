import pytest
import torch

from reasonseg import InputError
from reasonseg.config import kinds as config
from reasonseg.nn.prompt import Prompt

# of references: test_vlp.py, test_seggpt.py
KINDS = [k for k in config.kinds("prompters") if k not in ("vlp", "examples")]


def test_the_walk_sees_kinds():
    assert "seg_token" in KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_prompts_as_asked_for_in_order(kind):
    settings = config.config_class("prompters", kind).example()
    prompter = settings.build()
    states = torch.randn(4, settings.width_in)
    tokens = prompter(states).tokens
    assert tokens.shape[0] == 4 and tokens.shape[2] == settings.width_out
    assert torch.allclose(prompter(states[2:3]).tokens[0], tokens[2], atol=1e-6)
    assert len(prompter(states[:0])) == 0
    tokens.sum().backward()
    assert all(p.grad is not None for p in prompter.parameters())


def test_prompts_stand_side_by_side():
    a, b = Prompt(torch.zeros(2, 1, 8)), Prompt(torch.ones(2, 3, 8), torch.zeros(2, 1, 4, 4))
    both = a.beside(b)
    assert both.tokens.shape == (2, 4, 8) and both.dense is b.dense
    with pytest.raises(InputError, match="2 and 1 masks"):
        a.beside(Prompt(torch.zeros(1, 1, 8)))


@pytest.mark.parametrize(
    "tokens, dense", [((2, 8), None), ((2, 1, 8), (2, 4, 4)), ((2, 1, 8), (1, 1, 4, 4))]
)
def test_prompt_checks_its_shapes(tokens, dense):
    with pytest.raises(InputError):
        Prompt(torch.zeros(tokens), None if dense is None else torch.zeros(dense))
