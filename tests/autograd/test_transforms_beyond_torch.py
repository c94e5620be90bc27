"""Nested transforms of what torch's losses lack, on the kernels: the derivatives of torch's operators."""

import pytest
import torch
import torch.nn.functional as F
from torch import func

import fused_losses
from fused_losses.functional import (
    cross_entropy,
    entropy_from_logits,
    selective_log_softmax,
    selective_log_softmax_and_entropy,
    sigmoid_focal_loss,
    token_statistics,
)

FEW_ROUNDINGS = 64 * torch.finfo(torch.float64).eps
TARGET = torch.tensor([1, 0, 3])
SOFT_TARGET = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).view(3, 4)


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def target_of(x, target=TARGET):
    return target.to(x.device)


def focal_by_torch(x):
    losses = F.cross_entropy(x, target_of(x), reduction="none")
    return (losses * (1 - (-losses).exp()) ** 2).mean()


def focal_of_elements_by_torch(x):
    y = target_of(x, SOFT_TARGET)
    left = x.sigmoid() * (1 - y) + (-x).sigmoid() * y
    losses = F.binary_cross_entropy_with_logits(x, y, reduction="none") * left**2
    return (losses * (0.25 * y + 0.75 * (1 - y))).mean()


def statistics_by_torch(x):
    log_p = x.log_softmax(-1)
    log_prob = log_p.gather(-1, target_of(x).unsqueeze(-1)).squeeze(-1)
    return log_prob, x.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)


def square(*results):
    """A scalar that is linear in none of them."""
    return sum(result.square().sum() for result in results)


# Ours, and the same of torch's operators: scalars of logits (3, 4).
LOSSES = {
    "softcap": (
        lambda x: cross_entropy(x, target_of(x), softcap=2.0),
        lambda x: F.cross_entropy(2 * (x / 2).tanh(), target_of(x)),
    ),
    "logit_scale": (
        lambda x: cross_entropy(x, target_of(x), logit_scale=0.6),
        lambda x: F.cross_entropy(0.6 * x, target_of(x)),
    ),
    "lse_square_scale": (
        lambda x: cross_entropy(x, target_of(x), lse_square_scale=0.1),
        lambda x: F.cross_entropy(x, target_of(x)) + 0.1 * x.logsumexp(1).square().mean(),
    ),
    "focal_gamma": (lambda x: cross_entropy(x, target_of(x), focal_gamma=2.0), focal_by_torch),
    "sigmoid_focal_loss": (
        lambda x: sigmoid_focal_loss(x, target_of(x, SOFT_TARGET), reduction="mean"),
        focal_of_elements_by_torch,
    ),
    "token_statistics": (
        lambda x: square(*token_statistics(x, target_of(x))[:3]),
        lambda x: square(*statistics_by_torch(x)),
    ),
    "selective_log_softmax": (
        lambda x: square(selective_log_softmax(x, target_of(x))),
        lambda x: square(statistics_by_torch(x)[0]),
    ),
    "selective_log_softmax_and_entropy": (
        lambda x: square(*selective_log_softmax_and_entropy(x, target_of(x))),
        lambda x: square(*statistics_by_torch(x)[::2]),
    ),
    "entropy_from_logits": (lambda x: square(entropy_from_logits(x)), lambda x: square(statistics_by_torch(x)[2])),
}


def batched_double_backward(f, x):
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    pull_back = lambda v: torch.autograd.grad(gradient, leaf, v, retain_graph=True)[0]  # noqa: E731
    return func.vmap(pull_back)(torch.stack([x, x.flip(0)]))


def double_backward_of_a_vmap(f, x):
    leaf = torch.stack([x, x.flip(0)]).requires_grad_()
    return torch.autograd.grad(func.vmap(func.grad(f))(leaf).square().sum(), leaf)[0]


def backward_of_a_pullback(f, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(func.vjp(func.grad(f), leaf)[1](x)[0].sum(), leaf)[0]


NESTED = {
    "jacrev of grad": lambda f, x: func.jacrev(func.grad(f))(x),
    "jacrev of grad by chunks": lambda f, x: func.jacrev(func.grad(f), chunk_size=5)(x),
    "jacrev of jacrev": lambda f, x: func.jacrev(func.jacrev(f))(x),
    "jacrev of a gradient penalty": lambda f, x: func.jacrev(lambda y: func.grad(f)(y).square().sum())(x),
    "jacrev of jacrev of grad": lambda f, x: func.jacrev(func.jacrev(func.grad(f)))(x),
    "grad of jacrev of grad": lambda f, x: func.grad(lambda y: func.jacrev(func.grad(f))(y).square().sum())(x),
    "vmap of jacrev of grad": lambda f, x: func.vmap(func.jacrev(func.grad(f)))(torch.stack([x, x.flip(0)])),
    "grad of grad": lambda f, x: func.grad(lambda y: func.grad(f)(y).square().sum())(x),
    "vjp of grad": lambda f, x: func.vjp(func.grad(f), x)[1](x.flip(0)),
    "backward of a vjp of grad": backward_of_a_pullback,
    "batched double backward": batched_double_backward,
    "double backward of a vmap": double_backward_of_a_vmap,
}


@pytest.mark.parametrize("nesting", NESTED)
@pytest.mark.parametrize("loss", LOSSES)
def test_nested(loss, nesting, device):
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    ours, torchs = LOSSES[loss]
    fused_losses.routes(reset=True)
    result = NESTED[nesting](ours, x)
    taken = {route for by_route in fused_losses.routes().values() for route in by_route}
    assert taken and not any(route.startswith("torch") for route in taken), taken
    assert_same(result, NESTED[nesting](torchs, x))


@pytest.mark.parametrize("loss", LOSSES)
def test_functionalize_takes_torchs_operators(loss, device):
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    ours, torchs = LOSSES[loss]
    assert_same(func.functionalize(func.grad(ours))(x), func.grad(torchs)(x))
    assert_same(func.grad(func.functionalize(ours))(x), func.grad(torchs)(x))
