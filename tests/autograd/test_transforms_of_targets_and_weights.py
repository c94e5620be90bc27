"""Nested transforms that differentiate targets and weights: torch's results, and its refusals."""

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CROSS_ENTROPY,
    NLL_LOSS,
    sample,
    sample_class_probabilities,
)
from torch import func

import fused_losses

FEW_ROUNDINGS = 64 * torch.finfo(torch.float64).eps

# The loss, whether its target is class probabilities, its options, and the argument that is differentiated.
CASES = [
    (CROSS_ENTROPY, True, {}, "target"),
    (CROSS_ENTROPY, True, {"label_smoothing": 0.1}, "target"),
    (CROSS_ENTROPY, True, {}, "weight"),
    (CROSS_ENTROPY, True, {"label_smoothing": 0.1}, "weight"),
    (CROSS_ENTROPY, False, {}, "weight"),
    (CROSS_ENTROPY, False, {"label_smoothing": 0.1}, "weight"),
    (NLL_LOSS, False, {}, "weight"),
    (BINARY_CROSS_ENTROPY, False, {}, "target"),
    (BINARY_CROSS_ENTROPY, False, {}, "weight"),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, {}, "target"),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, {}, "weight"),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, {}, "pos_weight"),
]


def stack_of(tensor):
    return torch.stack([tensor, 0.5 * tensor])


def penalty(f, x, t):
    """Of the gradient for the input."""
    return func.grad(f)(x, t).square().sum()


def double_backward_of_a_vmap(f, x, t):
    leaves = x.clone().requires_grad_(), stack_of(t).requires_grad_()
    total = func.vmap(f, in_dims=(None, 0))(*leaves).sum()
    gradients = torch.autograd.grad(total, leaves, create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), leaves)


def wrapped_again(x, t):
    """By the level of ``x``, which hides that a level below differentiates ``t``."""
    return t * 1 + 0 * x.detach().sum()


NESTED = {
    "grad": lambda f, x, t: func.grad(f, argnums=1)(x, t),
    "grad of vmap": lambda f, x, t: func.grad(lambda s: func.vmap(f, in_dims=(None, 0))(x, s).sum())(stack_of(t)),
    "grad of vmap over the input": lambda f, x, t: func.grad(
        lambda u: func.vmap(f, in_dims=(0, None))(stack_of(x), u).sum()
    )(t),
    "vmap of grad": lambda f, x, t: func.vmap(func.grad(f, argnums=1), in_dims=(None, 0))(x, stack_of(t)),
    "grad of grad": lambda f, x, t: func.grad(lambda u: penalty(f, x, u))(t),
    "grad of grad of a wrapped one": lambda f, x, t: func.grad(
        lambda u: penalty(lambda a, v: f(a, wrapped_again(a, v)), x, u)
    )(t),
    "grad of vmap of grad": lambda f, x, t: func.grad(lambda s: func.vmap(lambda u: penalty(f, x, u))(s).sum())(
        stack_of(t)
    ),
    "grad of vmap of vmap of grad": lambda f, x, t: func.grad(
        lambda s: func.vmap(lambda u: func.vmap(lambda a: penalty(f, a, wrapped_again(a, u)))(stack_of(x)).sum())(
            s
        ).sum()
    )(stack_of(t)),
    "jacrev of grad": lambda f, x, t: func.jacrev(func.grad(f), argnums=1)(x, t),
    "jacrev of jacrev": lambda f, x, t: func.jacrev(func.jacrev(f), argnums=1)(x, t),
    "jacrev of vmap": lambda f, x, t: func.jacrev(func.vmap(f, in_dims=(None, 0)), argnums=1)(x, stack_of(t)),
    "jacfwd of grad": lambda f, x, t: func.jacfwd(func.grad(f), argnums=1)(x, t),
    "double backward of a vmap": double_backward_of_a_vmap,
}


def results_or_refusal(nesting, function, arguments, name, **options):
    others = {key: value for key, value in arguments.items() if key not in ("input", name)}

    def loss(x, t):
        return function(x, **{name: t}, **others, **options).sum()

    try:
        return NESTED[nesting](loss, arguments["input"], arguments[name])
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("nesting", NESTED)
@pytest.mark.parametrize(("loss", "probabilities", "options", "name"), CASES, ids=str)
def test_derivative_or_refusal_is_torchs(loss, probabilities, options, name, nesting, reduction, device):
    input, target = sample(loss, (3, 4), torch.float64, device)
    target = sample_class_probabilities((3, 4), torch.float64, device) if probabilities else target
    arguments = {"input": input, "target": target}
    if name != "target":
        arguments[name] = 0.5 + torch.rand(4, dtype=torch.float64, device=device)
    ours, torchs = (
        results_or_refusal(nesting, function, arguments, name, reduction=reduction, **options)
        for function in (loss.ours, loss.torchs)
    )
    if isinstance(torchs, RuntimeError):
        assert type(ours) is type(torchs)
        assert str(ours) == str(torchs)
    else:
        torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def test_a_weight_that_nothing_differentiates_stays_on_the_kernels():
    """Though the input's levels wrap it."""
    x, target, weight = torch.randn(4, 5), torch.arange(4), torch.rand(5)
    fused_losses.routes(reset=True)
    func.vmap(func.grad(lambda a, w: CROSS_ENTROPY.ours(a, target, w)), in_dims=(0, None))(stack_of(x), weight)
    leaf = weight.requires_grad_()
    with torch.no_grad():
        func.vmap(lambda w: CROSS_ENTROPY.ours(x, target, w))(stack_of(leaf))
    assert not any(route.startswith("torch") for route in fused_losses.routes()["cross_entropy"])
