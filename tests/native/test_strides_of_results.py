"""What an operator returns has the strides that its fake kernel says: torch.compile and AOTInductor build on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fused_losses import _ops
from fused_losses import functional as fused

VOLUMES = (2, 3, 2, 4, 3)
SHAPES = [(7,), (4, 5), (4, 5, 3), (1, 5, 3), (2, 5, 4, 3), (2, 5, 1, 3), pytest.param(VOLUMES, marks=pytest.mark.slow)]


def in_every_order(values: Tensor) -> Iterator[Tensor]:
    """Dense, with the axes in each order in memory."""
    for order in itertools.permutations(range(values.dim())):
        inverse = [order.index(dim) for dim in range(values.dim())]
        yield values.permute(order).contiguous().permute(inverse)


def parts_of_more(values: Tensor) -> Iterator[Tensor]:
    """Not dense: every second element of an axis, cut from a longer one, and what repeats along one."""
    for tensor in itertools.islice(in_every_order(values), 0, None, 5):
        for dim in range(tensor.dim()):
            yield tensor.repeat_interleave(2, dim).movedim(dim, 0)[::2].movedim(0, dim)
            yield torch.cat((tensor, tensor), dim).narrow(dim, 0, tensor.shape[dim])
    for dim in range(values.dim()):
        yield values.narrow(dim, 0, 1).expand(values.shape)


def layouts(shape: tuple[int, ...]) -> Iterator[Tensor]:
    values = torch.randn(shape)
    yield from itertools.islice(in_every_order(values), 0, None, 7 if len(shape) > 4 else 1)
    yield from parts_of_more(values)


def strides(tensor: Tensor) -> list[int]:
    """Of the axes where there is a second element."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def described(results: Any) -> list[Any]:
    results = results if isinstance(results, (tuple, list)) else (results,)
    return [(result.shape, result.dtype, strides(result)) for result in results]


def check(operator: Callable[..., Any], *arguments: Any) -> None:
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        said = described(operator(*fakes))
    assert described(operator(*arguments)) == said, operator


def class_dim(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 1 else 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy(shape: tuple[int, ...]) -> None:
    dim = class_dim(shape)
    indices = torch.randint(shape[dim], [size for axis, size in enumerate(shape) if axis != dim])
    for logits in layouts(shape):
        for target in (indices, torch.rand(shape).softmax(dim), logits.softmax(dim)):
            for reduction in (0, 1):
                options = (reduction, -100, 0.0, False)
                check(_ops.cross_entropy_prepared, logits, target, None, *options)
                loss, statistics = _ops.cross_entropy_with_statistics(logits, target, None, *options)
                tensors = (torch.ones_like(loss), logits, target, None, statistics)
                check(_ops.cross_entropy_backward, *tensors, *options)
            check(_ops.cross_entropy_with_gradient, logits, target, None, 1.0, 1, -100, 0.0, False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_binary_losses(shape: tuple[int, ...]) -> None:
    for logits in layouts(shape):
        for target in (torch.rand(shape), logits.sigmoid()):
            check(_ops.binary_cross_entropy_with_logits, logits, target, None, None, 0)
            check(_ops.binary_cross_entropy_with_logits_with_gradient, logits, target, None, None, 1, 1.0)
            check(_ops.binary_cross_entropy_with_logits_backward, torch.ones(()), logits, target, None, None, 1)
            check(_ops.sigmoid_focal_loss, logits, target, 0.25, 2.0, 0)
            check(_ops.sigmoid_focal_loss_backward, torch.ones(shape), logits, target, 0.25, 2.0, 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_losses_return_contiguous_tensors(shape: tuple[int, ...]) -> None:
    dim = class_dim(shape)
    indices = torch.randint(shape[dim], [size for axis, size in enumerate(shape) if axis != dim])
    tokens = torch.randint(shape[-1], shape[:-1])
    for input in layouts(shape):
        check(_ops.nll_loss, input, indices, None, 0, -100, False)
        check(_ops.nll_loss_backward, torch.ones(()), indices, None, list(shape), torch.float32, 1, -100, False)
        check(_ops.token_statistics, input, tokens, 1.0, 0.0, -100)
        *_, saved = _ops.token_statistics(input, tokens, 1.0, 0.0, -100)
        check(_ops.token_statistics_backward, torch.ones(shape[:-1]), None, None, input, tokens, saved, 1.0, 0.0, -100)
        check(_ops.elementary_function, input, 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_order_of_a_gradient(shape: tuple[int, ...]) -> None:
    """The order of torch.empty_like, of which the operators hold a copy; the values of contiguous logits."""
    dim = class_dim(shape)
    indices = torch.randint(shape[dim], [size for axis, size in enumerate(shape) if axis != dim])
    for layout in layouts(shape):
        for target in (indices, torch.rand(shape).softmax(dim)):
            found, expected = (
                torch.autograd.grad(fused.cross_entropy(x, target, reduction="sum"), x)[0]
                for x in (layout.detach().requires_grad_(), layout.contiguous().detach().requires_grad_())
            )
            torch.testing.assert_close(found, expected)
            assert strides(found) == strides(torch.empty_like(layout))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x.permute(2, 1, 0, 3),
        lambda x: x.to(memory_format=torch.channels_last)[:, :, 1:-1, 1:-1],
        lambda x: x[..., ::2].movedim(3, 0),
    ],
    ids=["transposed", "batch third", "cut from channels_last", "every second"],
)
def test_compiled(view: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    """By inductor, whose code reads the results at the strides that it was told."""
    shape = view(torch.empty(3, 5, 6, 8)).shape
    indices = torch.randint(shape[1], (shape[0], *shape[2:]))
    probabilities = torch.rand(shape)

    def losses(module: Any, x: Tensor) -> Tensor:
        z = view(x * 2)
        by_element = module.binary_cross_entropy_with_logits(z, probabilities, reduction="none") * 3
        return module.cross_entropy(z, indices) + by_element.mean()

    torch._dynamo.reset()
    ours, theirs = (torch.randn(3, 5, 6, 8).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours)
    torch.compile(losses, fullgraph=True, dynamic=dynamic)(fused, ours).backward()
    losses(torch.nn.functional, theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
