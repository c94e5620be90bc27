"""Derivatives for weights of tokens, of any kind: those of torch's operators, also where a weight is 0."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from losses import REDUCTIONS
from torch import func

from fused_losses.functional import cross_entropy

FEW_ROUNDINGS = 64 * torch.finfo(torch.float64).eps


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def dual(f, w):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(w, w + 1))).tangent


def backward_of_a_vmap(f, w):
    leaf = torch.stack([w, w.flip(0)]).requires_grad_()
    return torch.autograd.grad(func.vmap(f)(leaf).sum(), leaf)[0]


def compiled(transform):
    def call(f, w):
        torch.compiler.reset()
        return torch.compile(lambda u: transform(f, u), backend="eager", fullgraph=True)(w)

    return call


def grad_of_vmap(f, w):
    return func.grad(lambda stack: func.vmap(f)(stack).sum())(torch.stack([w, w.flip(0)]))


def jvp(f, w):
    return func.jvp(f, (w,), (w + 1,))[1]


TRANSFORMS = {
    "grad": lambda f, w: func.grad(f)(w),
    "grad of vmap": grad_of_vmap,
    "vmap of grad": lambda f, w: func.vmap(func.grad(f))(torch.stack([w, w.flip(0)])),
    "jacrev": lambda f, w: func.jacrev(f)(w),
    "jacrev of vmap": lambda f, w: func.jacrev(func.vmap(f))(torch.stack([w, w.flip(0)])),
    "jvp": jvp,
    "jacfwd": lambda f, w: func.jacfwd(f)(w),
    "dual numbers": dual,
    "backward of a vmap": backward_of_a_vmap,
    "grad that is compiled": compiled(lambda f, w: func.grad(f)(w)),
    "grad of vmap that is compiled": compiled(grad_of_vmap),
    "jvp that is compiled": compiled(jvp),
    "grad of what is compiled": lambda f, w: func.grad(lambda u: compiled(lambda g, v: g(v))(f, u))(w),
}


def weighted_by_torch(x, target, w, reduction):
    losses = F.cross_entropy(x, target, reduction="none") * w
    return losses.sum() / len(w) if reduction == "mean" else losses.sum()


def weighted(x, target, w, reduction):
    return cross_entropy(x, target, token_weight=w, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_token_weights(transform, reduction, device):
    x = torch.randn(4, 5, dtype=torch.float64, device=device)
    target = torch.arange(4, device=device)
    token_weight = torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=torch.float64, device=device)
    ours, torchs = (
        TRANSFORMS[transform](lambda w, f=function: f(x, target, w, reduction), token_weight)
        for function in (weighted, weighted_by_torch)
    )
    assert_same(ours, torchs)


@pytest.mark.parametrize("outer", [func.jacrev, func.jacfwd], ids=["jacrev", "jacfwd"])
def test_token_weights_of_a_gradient(outer, device):
    """The inner transform wraps the weights, too, and no flag of the wrapper shows who differentiates them."""
    x = torch.randn(4, 5, dtype=torch.float64, device=device)
    target = torch.arange(4, device=device)
    token_weight = torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=torch.float64, device=device)
    ours, torchs = (
        outer(func.grad(lambda a, w, f=function: f(a, target, w, "sum")), argnums=1)(x, token_weight)
        for function in (weighted, weighted_by_torch)
    )
    assert_same(ours, torchs)


CONSTANT_WEIGHTS = {
    "vmap": lambda f, x: func.vmap(f)(x.unsqueeze(0))[0],
    "grad of the logits": lambda f, x: func.grad_and_value(f)(x)[1],
    "compiled": compiled(lambda f, x: f(x)),
}


@pytest.mark.parametrize("transform", CONSTANT_WEIGHTS)
def test_rows_without_weight_are_left_out_where_nothing_differentiates_the_weights(transform):
    x, target = torch.randn(4, 5, dtype=torch.float64), torch.arange(4)
    x[2] = float("nan")
    token_weight = torch.tensor([2.0, 1.0, 0.0, -2.0], dtype=torch.float64)
    loss = CONSTANT_WEIGHTS[transform](lambda a: weighted(a, target, token_weight, "sum"), x)
    kept = torch.tensor([0, 1, 3])
    assert_same(loss, weighted_by_torch(x[kept], target[kept], token_weight[kept], "sum"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_jvp_of_token_weights_is_computed_in_float64(reduction, device):
    """As the kernels compute it, by whichever way."""
    x, target = torch.randn(4, 5, dtype=torch.float64, device=device), torch.arange(4, device=device)
    token_weight = torch.rand(4, dtype=torch.float64, device=device)
    value, tangent = func.jvp(
        lambda a: cross_entropy(a, target, token_weight=token_weight, reduction=reduction), (x,), (x,)
    )
    assert_same(value, cross_entropy(x, target, token_weight=token_weight, reduction=reduction))
    losses = func.jvp(lambda a: F.cross_entropy(a, target, reduction="none") * token_weight, (x,), (x,))[1]
    assert_same(tangent, {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("by_probability", [False, True])
def test_a_tangent_has_the_type_of_the_loss(reduction, by_probability):
    logits, weights = torch.randn(4, 3), torch.rand(4)
    target = torch.rand(4, 3).softmax(1) if by_probability else torch.tensor([0, 2, 1, 1])
    loss, tangent = func.jvp(
        lambda w: cross_entropy(logits, target, token_weight=w, reduction=reduction), (weights,), (weights,)
    )
    assert tangent.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(tangent, loss)  # it is linear in the weights


def gradient_of_penalty(f, x, target):
    return func.grad(lambda x: func.grad(lambda x: f(x, target))(x).square().sum())(x)


OF_A_SAMPLE = {
    "grad": lambda f, x, target: func.grad(lambda x: f(x, target))(x),
    "grad of a penalty": gradient_of_penalty,
    "jacfwd": lambda f, x, target: func.jacfwd(lambda x: f(x, target))(x),
    "hessian": lambda f, x, target: func.hessian(lambda x: f(x, target))(x),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"logit_scale": 2.0}, {"token_weight": 0.5}], ids=str
)
@pytest.mark.parametrize("transform", OF_A_SAMPLE)
def test_samples_without_axes_and_weights_of_classes(transform, options, reduction, device):
    """Of an index without axes torch's indexing asks the value, which a gradient under vmap does not know."""
    x, target, w = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, -100, 3]), torch.rand(5).double()
    x, target, w = (tensor.to(device) for tensor in (x, target, w))
    scale, factor = options.get("logit_scale", 1.0), options.get("token_weight", 1.0)
    given = {**options, "weight": w, "reduction": reduction}
    if "token_weight" in options:
        given["token_weight"] = torch.full((), factor, dtype=torch.float64, device=device)

    def torchs(x, target):
        smoothing = options.get("label_smoothing", 0.0)
        return F.cross_entropy(scale * x, target, w, reduction=reduction, label_smoothing=smoothing) * factor

    found, expected = (
        func.vmap(lambda x, target, f=f: OF_A_SAMPLE[transform](f, x, target))(x, target)
        for f in (lambda x, target: cross_entropy(x, target, **given), torchs)
    )
    torch.testing.assert_close(found, expected, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS, equal_nan=True)
