import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from model.training.precision import arithmetic


def test_bfloat16_multiplies_matrices_but_attends_in_float32_on_a_cpu() -> None:
    x = torch.randn(1, 2, 5, 8, requires_grad=True)
    weight = torch.randn(8, 8, requires_grad=True)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with arithmetic("bfloat16", "cpu"):
        projected = linear(x, weight)
        attended = scaled_dot_product_attention(projected, projected, value=projected, attn_mask=mask)
    assert projected.dtype == torch.bfloat16
    assert attended.dtype == torch.float32
    exact = projected.float()
    assert torch.equal(attended, scaled_dot_product_attention(exact, exact, exact, attn_mask=mask))
    attended.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    half = projected.detach()
    assert scaled_dot_product_attention(half, half, half).dtype == torch.bfloat16, "only within the context"


def test_float32_changes_nothing() -> None:
    x, weight = torch.randn(3, 8), torch.randn(8, 8)
    with arithmetic("float32", "cpu"):
        assert torch.equal(linear(x, weight), x @ weight.T)
