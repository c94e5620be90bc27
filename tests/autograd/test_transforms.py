"""torch.func transforms, forward-mode AD and torch.fx: the results are torch's."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from losses import BINARY_LOSSES, CLASS_LOSSES, CROSS_ENTROPY, LOSSES, REDUCTIONS, sample, sample_class_probabilities
from torch import func
from torch.fx.experimental.proxy_tensor import make_fx

FEW_ROUNDINGS = 16 * torch.finfo(torch.float64).eps


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def float64_sample(loss, shape, device):
    return sample(loss, shape, torch.float64, device)


def of_both(loss, transform):
    """transform(function) for ours and for torch's."""
    return transform(loss.ours), transform(loss.torchs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_grad_and_value(loss, reduction, device):
    input, target = float64_sample(loss, (6, 5), device)
    ours, torchs = of_both(loss, lambda f: func.grad_and_value(lambda x: f(x, target, reduction=reduction))(input))
    assert_same(ours, torchs)
    assert ours[0].abs().sum() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vmap_over_input_and_target(loss, reduction, device):
    inputs, targets = float64_sample(loss, (3, 5, 4), device)
    inputs = inputs.transpose(1, 2) if loss.by_class else inputs  # a stack of 3 problems of 4 rows of 5 classes
    ours, torchs = of_both(loss, lambda f: func.vmap(lambda x, t: f(x, t, reduction=reduction))(inputs, targets))
    assert_same(ours, torchs)
    assert ours.shape[0] == 3
    one_by_one = torch.stack([loss.ours(x, t, reduction=reduction) for x, t in zip(inputs, targets, strict=True)])
    assert_same(ours, one_by_one)


@pytest.mark.parametrize(
    ("in_dims", "description"), [((0, None), "one target for all"), ((None, 0), "one input for all")]
)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vmap_over_one_argument(loss, in_dims, description, device):
    input, target = float64_sample(loss, (6, 5), device)
    arguments = [
        torch.stack([argument, argument.flip(0), argument]) if dim == 0 else argument
        for argument, dim in zip((input, target), in_dims, strict=True)
    ]
    ours, torchs = of_both(loss, lambda f: func.vmap(f, in_dims=in_dims)(*arguments))
    assert_same(ours, torchs)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_per_sample_gradients(loss, device):
    """vmap(grad): one gradient of shared parameters per sample."""
    features, target = torch.randn(6, 7, dtype=torch.float64, device=device), float64_sample(loss, (6, 5), device)[1]
    parameters = torch.randn(7, 5, dtype=torch.float64, device=device)

    def sample_loss(function, weights, row, label):
        output = (row @ weights).unsqueeze(0)
        return function(output.sigmoid() if loss in BINARY_LOSSES else output, label.unsqueeze(0))

    ours, torchs = of_both(
        loss,
        lambda f: func.vmap(func.grad(lambda w, x, t: sample_loss(f, w, x, t)), in_dims=(None, 0, 0))(
            parameters, features, target
        ),
    )
    assert_same(ours, torchs)
    assert ours.shape == (6, 7, 5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_jvp(loss, reduction, device):
    input, target = float64_sample(loss, (6, 5), device)
    tangent = torch.randn_like(input)
    ours, torchs = of_both(loss, lambda f: func.jvp(lambda x: f(x, target, reduction=reduction), (input,), (tangent,)))
    assert_same(ours, torchs)
    assert (ours[1] != 0).any()


@pytest.mark.parametrize("transform", [func.jacrev, func.jacfwd])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_jacobian(loss, transform, device):
    input, target = float64_sample(loss, (3, 4), device)
    ours, torchs = of_both(loss, lambda f: transform(lambda x: f(x, target, reduction="none"))(input))
    assert_same(ours, torchs)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_hessian(loss, device):
    input, target = float64_sample(loss, (3, 4), device)
    ours, torchs = of_both(loss, lambda f: func.hessian(lambda x: f(x, target))(input))
    assert_same(ours, torchs)
    assert (ours != 0).any() or loss.name == "nll_loss"


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vjp(loss, device):
    input, target = float64_sample(loss, (6, 5), device)

    def pulled_back(function):
        value, pull_back = func.vjp(lambda x: function(x, target, reduction="none"), input)
        return value, *pull_back(torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value).to(device))

    assert_same(*of_both(loss, pulled_back))


def test_transforms_of_class_probabilities_with_weight_and_smoothing(device):
    logits, _ = float64_sample(CROSS_ENTROPY, (6, 5), device)
    target = sample_class_probabilities((6, 5), torch.float64, device)
    options = dict(weight=torch.rand(5, dtype=torch.float64, device=device), label_smoothing=0.1)
    for transform in (func.grad, func.jacrev, func.jacfwd):
        ours, torchs = of_both(
            CROSS_ENTROPY,
            lambda f, transform=transform: transform(lambda x, t: f(x, t, **options), argnums=(0, 1))(logits, target),
        )
        assert_same(ours, torchs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_dual_numbers(loss, reduction, device):
    input, target = float64_sample(loss, (6, 5), device)
    tangent = torch.randn_like(input)

    def dual_loss(function):
        with forward_ad.dual_level():
            value = function(forward_ad.make_dual(input, tangent), target, reduction=reduction)
            primal, derivative = forward_ad.unpack_dual(value)
            return primal.clone(), derivative.clone()

    assert_same(*of_both(loss, dual_loss))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_plain_tensors_inside_a_dual_level(loss, device):
    """No tensor has a tangent, so the loss has none; and its gradient works as outside."""
    input, target = float64_sample(loss, (6, 5), device)
    input.requires_grad_()
    with forward_ad.dual_level():
        value = loss.ours(input, target)
        assert forward_ad.unpack_dual(value).tangent is None
        (gradient,) = torch.autograd.grad(value, input)
    assert_same(gradient, torch.autograd.grad(loss.torchs(input, target), input)[0])


@pytest.mark.parametrize("transform", [func.vmap, func.jacrev, lambda f: func.grad(lambda v: f(v).square().sum())])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_transforms_of_an_eager_backward_with_a_graph(loss, reduction, transform, device):
    input, target = float64_sample(loss, (6, 5), device)

    def transformed(function):
        leaf = input.clone().requires_grad_()
        losses = function(leaf, target, reduction=reduction)
        grad_output = torch.ones((2, *losses.shape) if transform is func.vmap else losses.shape, dtype=losses.dtype)
        pull_back = lambda v: torch.autograd.grad(losses, leaf, v, create_graph=True, retain_graph=True)[0]  # noqa: E731
        return transform(pull_back)(grad_output.to(device))

    ours, torchs = of_both(loss, transformed)
    torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)  # torch's BCE has 1e-12 in a denominator


FUNCTIONALIZED = {
    "alone": lambda f, x: func.functionalize(f)(x),
    "around a gradient": lambda f, x: func.functionalize(func.grad(f))(x),
    "inside a gradient": lambda f, x: func.grad(func.functionalize(f))(x),
    "around a stack": lambda f, x: func.functionalize(func.vmap(f))(torch.stack([x, x.flip(0)])),
    "inside a gradient of a stack": lambda f, x: func.vmap(func.grad(func.functionalize(f)))(torch.stack([x] * 2)),
    "traced": lambda f, x: make_fx(func.functionalize(func.grad(f)))(x)(x),
}


@pytest.mark.parametrize("nesting", FUNCTIONALIZED)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_functionalize(loss, nesting, device):
    """It has no rule for a Function, and the other levels hand theirs down to it."""
    input, target = float64_sample(loss, (6, 5), device)
    transform = FUNCTIONALIZED[nesting]
    assert_same(*of_both(loss, lambda f: transform(lambda x: f(x, target), input)))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_ordinary_backward_of_tensors_closed_over_by_a_transform(loss, device):
    """func.grad over one argument leaves the other, an ordinary leaf, to the ordinary backward."""
    input, target = float64_sample(loss, (6, 5), device)

    def gradients(function):
        outer = torch.full((), 0.9, dtype=torch.float64, device=device, requires_grad=True)
        inner = func.grad(lambda x: function(x * outer, target))(input)
        return inner.detach(), *torch.autograd.grad(inner.square().sum(), outer)

    assert_same(*of_both(loss, gradients))


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_an_index_out_of_range_under_a_transform_raises(loss):
    input, target = float64_sample(loss, (6, 5), "cpu")
    target[0] = 5
    with pytest.raises((IndexError, RuntimeError)):
        func.grad(lambda x: loss.ours(x, target))(input)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_symbolic_trace_of_a_module(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    module = loss.our_module(reduction="sum")
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(input, target), module(input, target))
    assert len(list(traced.graph.nodes)) >= 4  # two placeholders, at least one call, the output


class TwoLayersAndALoss(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.first, self.second, self.criterion = torch.nn.Linear(7, 6), torch.nn.Linear(6, 5), loss.our_module()

    def forward(self, features, target):
        return self.criterion(self.second(self.first(features).relu()).sigmoid(), target)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_symbolic_trace_of_a_model_with_a_loss_in_it(loss, device):
    model = TwoLayersAndALoss(loss).to(device)
    features, target = torch.randn(6, 7, device=device), sample(loss, (6, 5), device=device)[1]
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(features, target), model(features, target))
