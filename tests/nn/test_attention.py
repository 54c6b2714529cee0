"""Attention as two products says what the fused kernel says."""

import copy

import torch

from reasonseg.nn.attention import NAME, use_products


def test_the_same_hidden_states(segmenter, picture):
    fused, plain = segmenter.backbone.model, copy.deepcopy(segmenter.backbone.model)
    use_products(plain)
    assert plain.config.text_config._attn_implementation == NAME
    pixels = segmenter.backbone.pixels.batch([picture], torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        a, b = (m.get_image_features(pixel_values=pixels) for m in (fused, plain))
        a, b = (getattr(x, "pooler_output", x)[0] for x in (a, b))
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)
        ids = torch.tensor([[1, 9, 8, 7], [1, 5, 0, 0]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        a, b = (
            m.model.language_model(input_ids=ids, attention_mask=mask).last_hidden_state
            for m in (fused, plain)
        )
    torch.testing.assert_close(a[0], b[0], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(a[1, :2], b[1, :2], atol=1e-3, rtol=1e-2)


def test_a_bool_mask_hides(segmenter):
    from reasonseg.nn.attention import attend

    q, k, v = (
        torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    mask = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])[None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(
        attend(None, q, k, v, mask)[0].transpose(1, 2), expected, atol=1e-5, rtol=1e-4
    )
