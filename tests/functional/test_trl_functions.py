"""selective_log_softmax and entropy_from_logits, TRL's names, against float64; with TRL itself: tests/integrations."""

import pytest
import torch

import fused_losses
from fused_losses.functional import entropy_from_logits, selective_log_softmax, selective_log_softmax_and_entropy

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index_shape", [(2, 6), (2, 6, 3), (2, 6, 0)], ids=str)
@pytest.mark.parametrize(("temperature", "masked"), [(1.0, False), (0.7, True)])
def test_selective_log_softmax(device, index_shape, dtype, temperature, masked):
    logits = torch.randn(2, 6, 90).to(device, dtype).requires_grad_()
    index = torch.randint(90, index_shape, device=device)
    row_mask = torch.rand(index_shape, device=device) < 0.6 if masked else None
    ours = selective_log_softmax(logits, index, temperature, row_mask)
    exact = (logits.double() / temperature).log_softmax(-1)
    expected = exact.gather(-1, index if index.dim() == 3 else index.unsqueeze(-1)).view(index_shape)
    expected = expected * row_mask if masked else expected
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected.to(dtype))
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    (reference,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, reference.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entropy_requires_grad", [True, False])
@pytest.mark.parametrize(("temperature", "masked"), [(1.0, False), (0.7, True)])
def test_selective_log_softmax_and_entropy(device, dtype, entropy_requires_grad, temperature, masked):
    logits = torch.randn(2, 6, 90).to(device, dtype).requires_grad_()
    index = torch.randint(90, (2, 6), device=device)
    row_mask = torch.rand(2, 6, device=device) < 0.6 if masked else None
    fused_losses.routes(reset=True)
    ours = selective_log_softmax_and_entropy(logits, index, entropy_requires_grad, temperature, row_mask)
    assert fused_losses.routes()["token_statistics"] == {"kernel": 1}
    exact = (logits.double() / temperature).log_softmax(-1)
    expected = [exact.gather(-1, index.unsqueeze(-1)).squeeze(-1), -(exact * exact.exp()).sum(-1)]
    expected = [values * row_mask for values in expected] if masked else expected
    torch.testing.assert_close(list(ours), [values.to(dtype) for values in expected])
    assert ours[1].requires_grad == entropy_requires_grad
    totals = [pair[0].sum() + (2 * pair[1].sum() if entropy_requires_grad else 0) for pair in (ours, expected)]
    (gradient,), (reference,) = (torch.autograd.grad(total, logits) for total in totals)
    torch.testing.assert_close(gradient, reference.to(dtype))


def test_what_is_masked_may_be_anything(device):
    logits, index = torch.randn(2, 3, 5, device=device), torch.randint(5, (2, 3), device=device)
    logits[0, 1], logits[1, 0] = float("nan"), -float("inf")
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]], device=device)
    leaf = logits.requires_grad_()
    log_prob, entropy = selective_log_softmax_and_entropy(leaf, index, row_mask=mask)
    assert not log_prob[mask == 0].any() and not entropy[mask == 0].any()
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), leaf)
    assert gradient.isfinite().all() and not gradient[mask == 0].any()


@pytest.mark.parametrize("function", [selective_log_softmax, selective_log_softmax_and_entropy])
def test_a_temperature_that_is_not_positive_raises(function):
    with pytest.raises(ValueError, match="temperature must be positive"):
        function(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), temperature=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_from_logits(device, dtype):
    logits = torch.randn(2, 6, 90).to(device, dtype)
    expected = torch.distributions.Categorical(logits=logits.double()).entropy()
    ours = entropy_from_logits(logits, chunk_size=4)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected.to(dtype))
