"""The focal loss of logits and its gradients against float64, in the words of torchvision."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from parity import assert_not_less_exact, assert_same_non_finite_values
from torch.autograd import gradcheck, gradgradcheck

import fused_losses
from fused_losses.functional import sigmoid_focal_loss

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Of a register and its rest, and of several chunks of the kernel.
SHAPES = [(), (3,), (37,), (5, 91), (2, 9, 120)]


def reference(inputs, targets, alpha=0.25, gamma=2.0, reduction="none"):
    """The definition; of 1 - p_t the side that is exact."""
    left = torch.sigmoid(inputs) * (1 - targets) + torch.sigmoid(-inputs) * targets
    losses = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    losses = losses * (left**gamma if gamma else 1)
    if alpha >= 0:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def loss_and_gradient(function, inputs, targets, grad_output, **options):
    leaf = inputs.detach().clone().requires_grad_()
    loss = function(leaf, targets, **options)
    loss.backward(grad_output.to(loss.dtype))
    return loss.detach(), leaf.grad


def check(inputs, targets, **options):
    shape = inputs.shape if options.get("reduction", "none") == "none" else ()
    grad_output = torch.randn(shape).to(targets)
    computation = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    ours = loss_and_gradient(sigmoid_focal_loss, inputs, targets, grad_output, **options)
    theirs, exact = (
        loss_and_gradient(reference, inputs.to(dtype), targets.to(dtype), grad_output, **options)
        for dtype in (computation, torch.float64)
    )
    assert ours[0].dtype == targets.dtype and ours[1].dtype == inputs.dtype
    for what, a, b, c in zip(("loss", "gradient"), ours, theirs, exact, strict=True):
        if inputs.dtype == torch.float64:
            torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-14)
        else:
            assert_not_less_exact(a, b.to(a.dtype), c, what=what)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradient(device, dtype, shape):
    inputs = (torch.randn(shape) * 4).to(device, dtype)
    hard, soft = torch.randint(2, shape).to(inputs), torch.rand(shape).to(inputs)
    for alpha, gamma, reduction in itertools.product((0.25, -1), (2, 0, 0.5, 1), ("none", "mean", "sum")):
        for targets in (hard, soft):
            check(inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction)


def test_float32_targets_of_16_bit_logits(device):
    inputs = torch.randn(5, 91, device=device).bfloat16()
    targets = torch.randint(2, (5, 91), device=device).float()
    loss = sigmoid_focal_loss(inputs, targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference(inputs.float(), targets, reduction="sum"))


@pytest.mark.parametrize("value", [20.0, 80.0, 200.0, float("inf")])
def test_certain_logits(device, value):
    """Where nothing is left of the loss, and where all is."""
    inputs = torch.tensor([value, -value, value, -value], device=device, requires_grad=True)
    targets = torch.tensor([1.0, 0.0, 0.0, 1.0], device=device)
    losses = sigmoid_focal_loss(inputs, targets, alpha=-1)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach().cpu(), torch.tensor([0.0, 0.0, value, value]))
    torch.testing.assert_close(inputs.grad.cpu(), torch.tensor([0.0, 0.0, 1.0, -1.0]))


def test_nan_stays(device):
    inputs = torch.tensor([float("nan"), 1.0], device=device)
    assert_same_non_finite_values(sigmoid_focal_loss(inputs, torch.ones_like(inputs)), inputs, "loss")


@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_derivatives(device, gamma):
    inputs = torch.randn(7, dtype=torch.float64, device=device, requires_grad=True)
    targets = torch.randint(2, (7,)).to(inputs)
    for reduction in ("none", "mean"):

        def loss(x, reduction=reduction):
            return sigmoid_focal_loss(x, targets, gamma=gamma, reduction=reduction)

        assert gradcheck(loss, inputs) and gradgradcheck(loss, inputs)


def test_compiled_and_batched(device):
    inputs, targets = torch.randn(3, 40, device=device), torch.randint(2, (3, 40), device=device).float()

    def loss(x, y):
        return sigmoid_focal_loss(x, y, reduction="mean")

    leaf = inputs.clone().requires_grad_()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf, targets).backward()
    _, gradient = loss_and_gradient(sigmoid_focal_loss, inputs, targets, inputs.new_ones(()), reduction="mean")
    assert torch.equal(leaf.grad, gradient)
    torch.testing.assert_close(torch.func.grad(loss)(inputs, targets), gradient)
    batched = torch.func.vmap(torch.func.grad(loss))(inputs, targets)
    torch.testing.assert_close(batched, 3 * gradient)
    _, tangent = torch.func.jvp(lambda x: loss(x, targets), (inputs,), (inputs,))
    torch.testing.assert_close(tangent, (gradient * inputs).sum())


def test_the_target_gets_its_gradient(device):
    inputs, targets = torch.randn(9, device=device), torch.rand(9, device=device)
    gradients = []
    for function in (sigmoid_focal_loss, reference):
        leaf = targets.clone().requires_grad_()
        function(inputs, leaf, reduction="sum").backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_strided_and_empty(device):
    inputs, targets = torch.randn(40, 6, device=device).t(), torch.randint(2, (6, 40), device=device).float()
    check(inputs, targets, reduction="none")
    assert sigmoid_focal_loss(inputs[:0], targets[:0]).shape == (0, 40)


def test_the_kernel_computes_it(device):
    fused_losses.routes(reset=True)
    sigmoid_focal_loss(torch.randn(3, device=device), torch.ones(3, device=device))
    assert fused_losses.routes()["sigmoid_focal_loss"] == {"kernel": 1}


@pytest.mark.parametrize(
    "options", [{"alpha": 2.0}, {"alpha": -0.5}, {"gamma": -1.0}, {"reduction": "average"}], ids=str
)
def test_bad_options(options):
    with pytest.raises(ValueError):
        sigmoid_focal_loss(torch.randn(3), torch.ones(3), **options)


def test_bad_shapes():
    with pytest.raises(ValueError):
        sigmoid_focal_loss(torch.randn(3), torch.ones(4))


def test_a_scale_that_is_to_be_learned_has_its_gradient(device):
    """By torch's operators, as with torchvision's function."""
    inputs, targets = torch.randn(4, 5, device=device), torch.rand(4, 5, device=device)
    alpha, gamma = (torch.tensor(value, device=device, requires_grad=True) for value in (0.25, 2.0))
    loss = sigmoid_focal_loss(inputs, targets, alpha, gamma, "mean")
    torch.testing.assert_close(loss, sigmoid_focal_loss(inputs, targets, 0.25, 2.0, "mean"))
    expected = torch.autograd.grad(reference(inputs, targets, alpha, gamma, "mean"), (alpha, gamma))
    for found, wanted in zip(torch.autograd.grad(loss, (alpha, gamma)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_second_derivatives_of_confident_logits(device, gamma):
    """On either side they are small, and no difference of numbers near 1."""
    x = torch.tensor([-80.0, -17.0, -8.0, -1.0, 0.0, 0.5, 6.0, 12.0, 15.0, 17.0, 40.0]).repeat(3)
    y = torch.tensor([0.0, 1.0, 0.3]).repeat_interleave(11)

    def second(function, dtype):
        leaf = x.to(device, dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf, y.to(leaf), gamma=gamma).sum(), leaf, create_graph=True)
        return torch.autograd.grad(gradient.sum(), leaf)[0].cpu()

    exact = second(sigmoid_focal_loss, torch.float64)
    torch.testing.assert_close(second(sigmoid_focal_loss, torch.float32).double(), exact, rtol=1e-5, atol=1e-37)
    is_moderate = x.abs() < 13
    of_torch = second(reference, torch.float64)
    torch.testing.assert_close(exact[is_moderate], of_torch[is_moderate], rtol=1e-9, atol=1e-12)
