"""8-bit and 4-bit language models mark what the full one marks, and nothing else is quantised."""

import pytest
from parity import oracle

from reasonseg import Segmenter
from reasonseg.errors import InputError
from reasonseg.nn.quantization import is_quantized

pytest.importorskip("bitsandbytes")
PER_LAYER = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module", params=["int8", "nf4"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def small(kind):
    return Segmenter.from_pretrained(quantization=kind)


def quantised(model):
    return [name for name, module in model.named_modules() if is_quantized(module)]


def test_only_the_language_models_layers(small):
    names = quantised(small)
    lead = "backbone.model.model.language_model.layers."
    assert len(names) == 7 * len(small.backbone.layers)
    assert all(name.startswith(lead) and name.rsplit(".", 1)[1] in PER_LAYER for name in names)


def test_a_released_checkpoint_alike(kind):
    model = Segmenter.from_pretrained(oracle("A_lisa", "checkpoint"), quantization=kind)
    names = quantised(model)
    assert len(names) == 14 and all(".language_model.layers." in name for name in names)
    with pytest.raises(InputError, match="not saved"):
        model.save_pretrained("nowhere")


@pytest.fixture(scope="module")
def answered(segmenter, font):
    """Questions, and what the full model answers; asked once for both kinds."""
    from reasonseg.datasets.scenes import Config

    data = Config("test", 210, size=168).build()
    samples = [data[i] for i in range(210)]
    return samples, segmenter.batch([s.query for s in samples])


def test_it_marks_what_the_full_model_marks(answered, small, kind):
    from scripts.compare_quantization import compare

    samples, full = answered
    found = compare(samples, full, small.batch([s.query for s in samples]))
    assert found["giou_drop"] <= {"int8": 0.01, "nf4": 0.05}[kind]
    assert found["same_object"] >= {"int8": 0.95, "nf4": 0.85}[kind]
    assert found["blank"] == 0
