"""Forward mode over the backward of a loss that was computed before: the tangent of grad_output is not lost."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from losses import LOSSES, sample
from torch import func

import fused_losses.functional as ours

TORCHS_EPSILON = 1e-12  # in the denominator of torch's tangent for binary_cross_entropy


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=100 * TORCHS_EPSILON, atol=100 * TORCHS_EPSILON)


def pull_back(loss, leaf, **options):
    return lambda v: torch.autograd.grad(loss, leaf, v, retain_graph=True, **options)[0]


def primal_and_tangent(function, value, tangent):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(value, tangent))))


def dual_numbers(loss, leaf):
    return primal_and_tangent(pull_back(loss, leaf), torch.ones_like(loss), torch.full_like(loss, 3))


def dual_numbers_of_a_graph(loss, leaf):
    function = pull_back(loss, leaf, create_graph=True)
    return primal_and_tangent(function, torch.ones_like(loss), torch.full_like(loss, 3))


def dual_numbers_of_a_double_backward(loss, leaf):
    grad_output = torch.full_like(loss, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(loss, leaf, grad_output, create_graph=True)
    tangent = torch.arange(1.0, gradient.numel() + 1, dtype=gradient.dtype, device=gradient.device).view_as(gradient)
    return primal_and_tangent(pull_back(gradient, grad_output), torch.ones_like(gradient), tangent)


def jvp(loss, leaf):
    return func.jvp(pull_back(loss, leaf), (torch.ones_like(loss),), (torch.full_like(loss, 2),))


def jacobian(loss, leaf):
    return func.jacfwd(pull_back(loss, leaf))(torch.ones_like(loss))


def stack_of_jvps(loss, leaf):
    tangents = torch.stack([torch.full_like(loss, 2), torch.full_like(loss, -1)])
    return func.vmap(lambda t: func.jvp(pull_back(loss, leaf), (torch.ones_like(loss),), (t,)))(tangents)


def gradient_of_a_jvp(loss, leaf):
    function = pull_back(loss, leaf, create_graph=True)
    square = lambda t: func.jvp(function, (torch.ones_like(loss),), (t,))[1].square().sum()  # noqa: E731
    return func.grad(square)(torch.full_like(loss, 2))


def jvp_of_a_gradient(loss, leaf):
    function = pull_back(loss, leaf, create_graph=True)
    gradient = func.grad(lambda v: function(v).square().sum())
    return func.jvp(gradient, (torch.ones_like(loss),), (torch.full_like(loss, 2),))


WAYS = [
    dual_numbers,
    dual_numbers_of_a_graph,
    dual_numbers_of_a_double_backward,
    jvp,
    jacobian,
    stack_of_jvps,
    gradient_of_a_jvp,
    jvp_of_a_gradient,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses(loss, reduction, way, device):
    input, target = sample(loss, (6, 5), torch.float64, device)
    results = []
    for function in (loss.ours, loss.torchs):
        leaf = input.clone().requires_grad_()
        results.append(way(function(leaf, target, reduction=reduction), leaf))
    assert_same(*results)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_pullback_of_a_transform(loss, device):
    input, target = sample(loss, (6, 5), torch.float64, device)
    results = []
    for function in (loss.ours, loss.torchs):
        value, pull = func.vjp(lambda x, f=function: f(x, target), input)
        results.append(func.jvp(lambda v, p=pull: p(v)[0], (torch.ones_like(value),), (torch.full_like(value, 2),)))
    assert_same(*results)


TARGET = torch.tensor([1, 0, 3])
LAYER = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)

# Ours, and the same of torch's operators: of hidden features or logits (3, 4).
BEYOND_TORCH = {
    "softcap": (
        lambda x: ours.cross_entropy(x, TARGET.to(x.device), softcap=2.0),
        lambda x: F.cross_entropy(2 * (x / 2).tanh(), TARGET.to(x.device)),
    ),
    "sigmoid_focal_loss": (
        lambda x: ours.sigmoid_focal_loss(x, (x > 0).to(x.dtype), alpha=-1, gamma=0),
        lambda x: F.binary_cross_entropy_with_logits(x, (x > 0).to(x.dtype), reduction="none"),
    ),
    "token_statistics": (
        lambda x: ours.token_statistics(x, TARGET.to(x.device)).log_sum_exp,
        lambda x: x.logsumexp(-1),
    ),
    "linear_cross_entropy": (
        lambda x: ours.linear_cross_entropy(x, LAYER.to(x.device), TARGET.to(x.device)),
        lambda x: F.cross_entropy(x @ LAYER.to(x.device).T, TARGET.to(x.device)),
    ),
    "linear_token_statistics": (
        lambda x: ours.linear_token_statistics(x, LAYER.to(x.device), TARGET.to(x.device)).log_sum_exp,
        lambda x: (x @ LAYER.to(x.device).T).logsumexp(-1),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", BEYOND_TORCH)
def test_what_torch_lacks(loss, way, device):
    input = torch.randn(3, 4, dtype=torch.float64, device=device)
    results = []
    for function in BEYOND_TORCH[loss]:
        leaf = input.clone().requires_grad_()
        results.append(way(function(leaf), leaf))
    assert_same(*results)
