"""Compiled graphs have gradients where Dynamo's flags say that none is wanted: of what an alias was written to, and of
what a scan carries along."""

import pytest
import torch
import torch.nn.functional as F
from losses import LOSSES, REDUCTIONS, sample

from fused_losses.functional import cross_entropy, linear_cross_entropy, token_statistics


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def _slice(buffer, x):
    buffer[:, :].add_(x)
    return buffer


def _transposed(buffer, x):
    buffer.t().copy_(x.t())
    return buffer


def _view_before(buffer, x):
    view = buffer[:]
    buffer.copy_(x)
    return view


def _flattened(buffer, x):
    buffer.flatten().copy_(x.flatten())
    return buffer


@pytest.mark.parametrize("write", [_slice, _transposed, _view_before, _flattened])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_buffer_that_is_written_through_a_view(loss, reduction, write):
    input, target = sample(loss, (4, 5))

    def gradient(function):
        leaf = input.clone().requires_grad_()
        function(leaf).sum().backward()
        return leaf.grad

    expected = gradient(lambda x: loss.torchs(x * 1, target, reduction=reduction))
    compiled = torch.compile(
        lambda x: loss.ours(write(torch.zeros(4, 5), x), target, reduction=reduction),
        backend="aot_eager",
        fullgraph=True,
    )
    torch.testing.assert_close(gradient(compiled), expected)


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"reduction": "none", "lse_square_scale": 0.1}], ids=str)
def test_options_beyond_torch(options):
    leaf = torch.randn(4, 5, requires_grad=True)
    target = torch.tensor([0, 4, 2, 1])
    compiled = torch.compile(
        lambda x: cross_entropy(_slice(torch.zeros(4, 5), x), target, **options), backend="aot_eager"
    )
    gradients = [
        torch.autograd.grad(loss.sum(), leaf)[0] for loss in (compiled(leaf), cross_entropy(leaf, target, **options))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_of_a_linear_loss_that_is_written_through_a_view(reduction, frozen):
    """Where the flag of the other tensor is right, the graph holds its gradient alone."""
    rows, features = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=not frozen)
    target = torch.randint(0, 5, (7,))

    def program(loss, rows, features):
        weight = torch.zeros(5, 3)
        weight[:].copy_(rows)
        return loss(features, weight, target)

    def ours(features, weight, target):
        return linear_cross_entropy(features, weight, target, reduction=reduction)

    def composed(features, weight, target):
        return F.cross_entropy(features @ weight.T, target, reduction=reduction)

    leaves = [rows] if frozen else [rows, features]
    compiled = torch.compile(lambda *tensors: program(ours, *tensors), backend="aot_eager", fullgraph=True)
    losses = compiled(rows, features), program(composed, rows, features)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), leaves) for loss in losses))


def _scan_losses(module):
    return {
        "cross_entropy": lambda state, target: module.cross_entropy(state * 1.0, target).clone(),
        "none": lambda state, target: module.cross_entropy(state, target, reduction="none").sum(),
        "bce": lambda state, target: module.binary_cross_entropy_with_logits(state, state.detach().sigmoid()).clone(),
    }


@pytest.mark.parametrize("name", ["cross_entropy", "none", "bce"])
def test_the_state_of_a_scan(name):
    from torch._higher_order_ops.scan import scan

    from fused_losses import functional

    target = torch.tensor([0, 1, 2, 3])
    gradients = []
    for module in (functional, F):
        loss = _scan_losses(module)[name]

        def step(state, x, loss=loss):
            state = 0.5 * state
            return state + x, loss(state, target)

        steps = torch.linspace(0, 1, 60).view(3, 4, 5).requires_grad_()
        _, losses = scan(step, torch.zeros(4, 5), steps)
        losses.sum().backward()
        gradients.append(steps.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x, t: cross_entropy(x, t),
        lambda x, t: cross_entropy(x, t, softcap=5.0),
        lambda x, t: cross_entropy(x, t, lse_square_scale=0.1, logit_scale=2.0),
        lambda x, t: token_statistics(x, t, softcap=5.0).log_prob.sum(),
        lambda x, t: linear_cross_entropy(x, x.detach()[:2] * 1, t),
    ],
    ids=["plain", "softcap", "z-loss", "statistics", "linear"],
)
def test_a_branch(loss, dynamic):
    target = torch.tensor([0, 1, 0, 1])

    def program(x):
        return torch.cond(x.sum() > 0, lambda x: loss(x, target).clone(), lambda x: loss(x * 2, target).clone(), (x,))

    x = torch.randn(4, 6)
    compiled = torch.compile(program, backend="eager", dynamic=dynamic)
    for value in (x - 9, x + 9):
        expected = loss(value if value.sum() > 0 else value * 2, target)
        torch.testing.assert_close(compiled(value), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_probabilities_of_a_linear_loss_that_are_written_through_a_view(reduction):
    features, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4)
    probabilities = torch.rand(6, 5).softmax(1).requires_grad_()

    def program(loss, features, weight, probabilities):
        written = torch.zeros(6, 5)
        written[:].copy_(probabilities)
        return loss(features, weight, written, reduction=reduction)

    def composed(features, weight, target, reduction):
        return F.cross_entropy(features @ weight.T, target, reduction=reduction)

    tensors, leaves = (features, weight, probabilities), (features, probabilities)
    compiled = torch.compile(lambda *args: program(linear_cross_entropy, *args), backend="aot_eager")
    losses = compiled(*tensors), program(composed, *tensors)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), leaves) for loss in losses))
