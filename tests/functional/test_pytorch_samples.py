"""PyTorch's own sample inputs of the four functions (its OpInfo database), run through ours and through torch's."""

import pytest
import torch
from losses import LOSS_BY_NAME
from parity import check_parity
from torch._subclasses import FakeTensorMode
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.composite_compliance import check_with_mode

OP_INFOS = {
    op.name.removeprefix("nn.functional."): op for op in op_db if op.name.removeprefix("nn.functional.") in LOSS_BY_NAME
}
TORCHS = {name: loss.torchs for name, loss in LOSS_BY_NAME.items()}
OP_AND_DTYPE = [
    pytest.param(name, dtype, id=f"{name}-{dtype}")
    for name, op in OP_INFOS.items()
    for dtype in sorted(op.dtypes, key=str)
    if dtype.is_floating_point
]

# In float64 torch's result is itself the expected one. Both sum up to a few hundred products of numbers below 10.
FEW_HUNDRED_ROUNDINGS = 500 * torch.finfo(torch.float64).eps


def samples_of(name, device, dtype, requires_grad):
    samples = list(OP_INFOS[name].sample_inputs(device, dtype, requires_grad=requires_grad))
    assert samples
    return samples


def tensors_with_grad(sample):
    candidates = [sample.input, *sample.args, *sample.kwargs.values()]
    return [value for value in candidates if torch.is_tensor(value) and value.requires_grad]


def value_and_gradients(function, sample):
    """The loss and the gradients to every argument that wants one, all with respect to a non-uniform grad_output."""
    loss = function(sample.input, *sample.args, **sample.kwargs)
    grad_output = torch.linspace(0.5, 1.5, max(loss.numel(), 1), device=loss.device, dtype=loss.dtype)
    grad_output = grad_output[: loss.numel()].view(loss.shape)
    return [loss, *torch.autograd.grad(loss, tensors_with_grad(sample), grad_output, create_graph=True)]


def second_gradients(function, sample):
    gradients = value_and_gradients(function, sample)[1:]
    differentiable = [gradient for gradient in gradients if gradient.requires_grad]
    # Not the plain sum: the gradients of a softmax add up to a constant, whose own gradient is zero.
    weighted = sum(
        (gradient * torch.arange(gradient.numel(), device=gradient.device).view_as(gradient)).sum()
        for gradient in differentiable
    )
    return torch.autograd.grad(weighted, tensors_with_grad(sample)) if differentiable else []


def assert_close_to_torchs(ours, torchs):
    torch.testing.assert_close(
        list(ours), list(torchs), rtol=FEW_HUNDRED_ROUNDINGS, atol=FEW_HUNDRED_ROUNDINGS, equal_nan=True
    )


def test_all_four_functions_are_in_pytorchs_database():
    assert OP_INFOS.keys() == LOSS_BY_NAME.keys()


@pytest.mark.parametrize(("name", "dtype"), OP_AND_DTYPE)
def test_values_and_input_gradients(name, dtype, device):
    for sample in samples_of(name, device, dtype, requires_grad=False):
        (target,) = sample.args
        check_parity(LOSS_BY_NAME[name], sample.input, target, **sample.kwargs)


@pytest.mark.parametrize(("name", "dtype"), OP_AND_DTYPE)
def test_values_without_gradient(name, dtype, device):
    loss = LOSS_BY_NAME[name]
    for sample in samples_of(name, device, dtype, requires_grad=False):
        without = loss.ours(sample.input, *sample.args, **sample.kwargs)
        with_graph = loss.ours(sample.input.requires_grad_(), *sample.args, **sample.kwargs)
        assert with_graph.requires_grad and not without.requires_grad
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(without, with_graph.detach(), rtol=rounding, atol=rounding, equal_nan=True)


@pytest.mark.parametrize("name", OP_INFOS)
def test_gradients_of_all_arguments(name, device):
    loss = LOSS_BY_NAME[name]
    for sample in samples_of(name, device, torch.float64, requires_grad=True):
        assert_close_to_torchs(value_and_gradients(loss.ours, sample), value_and_gradients(loss.torchs, sample))


@pytest.mark.parametrize("name", OP_INFOS)
def test_second_gradients_of_all_arguments(name, device):
    loss = LOSS_BY_NAME[name]
    num_compared = 0
    for sample in samples_of(name, device, torch.float64, requires_grad=True):
        torchs = second_gradients(loss.torchs, sample)
        assert_close_to_torchs(second_gradients(loss.ours, sample), torchs)
        num_compared += len(torchs)
    assert num_compared > 0


def inputs_and_rest(name):
    """Each float64 sample as the loss of its first tensor: the function of it, ours and torch's, and the tensor."""
    for sample in samples_of(name, "cpu", torch.float64, requires_grad=False):
        yield (
            *(lambda x, f=f, s=sample: f(x, *s.args, **s.kwargs) for f in (LOSS_BY_NAME[name].ours, TORCHS[name])),
            sample.input,
        )


@pytest.mark.parametrize("name", OP_INFOS)
def test_forward_mode_derivatives(name):
    for ours, torchs, input in inputs_and_rest(name):
        tangent = torch.linspace(-1, 1, input.numel(), dtype=input.dtype).view_as(input)
        assert_close_to_torchs(torch.func.jvp(ours, (input,), (tangent,)), torch.func.jvp(torchs, (input,), (tangent,)))


@pytest.mark.parametrize("name", OP_INFOS)
def test_a_stack_of_samples_under_vmap_and_its_gradients(name):
    for ours, torchs, input in inputs_and_rest(name):
        if input.numel() == 0:
            continue
        stack = torch.stack([input, input.flip(0), input])
        assert_close_to_torchs([torch.func.vmap(ours)(stack)], [torch.stack([torchs(x) for x in stack])])
        gradients = torch.func.vmap(torch.func.grad(lambda x, f=ours: f(x).sum()))(stack)
        expected = torch.stack([torch.func.grad(lambda x, f=torchs: f(x).sum())(x) for x in stack])
        assert_close_to_torchs([gradients], [expected])


@pytest.mark.parametrize("name", OP_INFOS)
def test_fake_tensors_have_the_shapes_of_real_ones(name):
    for sample in samples_of(name, "cpu", torch.float64, requires_grad=False):
        expected = LOSS_BY_NAME[name].ours(sample.input, *sample.args, **sample.kwargs)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = LOSS_BY_NAME[name].ours(mode.from_tensor(sample.input), *sample.args, **sample.kwargs)
        assert (fake.shape, fake.dtype, fake.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize("name", OP_INFOS)
def test_composite_compliance(name):
    for sample in samples_of(name, "cpu", torch.float64, requires_grad=False):
        check_with_mode(
            LOSS_BY_NAME[name].ours, [sample.input, *sample.args], sample.kwargs, torch.testing.assert_close
        )
