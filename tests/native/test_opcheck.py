"""torch.library.opcheck on every operator: schema, fake kernel, registration of the derivative, AOT dispatch."""

from __future__ import annotations

import pytest
import torch

from fused_losses import _ops

# Operators that have a derivative are checked with inputs that ask for one.
DIFFERENTIABLE = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
BUILDING_BLOCK = ("test_schema", "test_faketensor")

INDEX_OPTIONS = [(1, -100, 0.0, False), (0, 2, 0.1, False), (2, -100, 0.0, False)]


def class_case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(6, 7, 3).to(dtype), torch.randint(7, (6, 3)), torch.rand(7).to(dtype)


@pytest.mark.parametrize("options", INDEX_OPTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(options: tuple[int, int, float, bool], weighted: bool) -> None:
    logits, target, weight = class_case()
    weight = weight if weighted else None
    torch.library.opcheck(
        _ops.cross_entropy, (logits.requires_grad_(), target, weight, *options), test_utils=DIFFERENTIABLE
    )
    torch.library.opcheck(_ops.cross_entropy_prepared, (logits, target, weight, *options), test_utils=DIFFERENTIABLE)
    arguments = (logits.detach(), target, weight, *options)
    torch.library.opcheck(_ops.cross_entropy_forward, arguments, test_utils=BUILDING_BLOCK)
    torch.library.opcheck(_ops.cross_entropy_with_statistics, arguments, test_utils=BUILDING_BLOCK)
    if options[0] != 0:
        with_grad_output = (*arguments[:3], 0.5, *options)
        torch.library.opcheck(_ops.cross_entropy_with_gradient, with_grad_output, test_utils=BUILDING_BLOCK)
    loss, statistics = _ops.cross_entropy_with_statistics(*arguments)
    torch.library.opcheck(
        _ops.cross_entropy_backward,
        (torch.ones_like(loss), logits.detach(), target, weight, statistics, *options),
        test_utils=BUILDING_BLOCK,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_with_probabilities(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 9).to(dtype)
    tensors, options = (logits, torch.randn(5, 9).softmax(1), None), (1, -100, 0.0, False)
    torch.library.opcheck(_ops.cross_entropy_forward, (*tensors, *options), test_utils=BUILDING_BLOCK)
    torch.library.opcheck(_ops.cross_entropy_with_gradient, (*tensors, 1.0, *options), test_utils=BUILDING_BLOCK)
    torch.library.opcheck(_ops.cross_entropy_with_statistics, (*tensors, *options), test_utils=BUILDING_BLOCK)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_nll_loss(reduction: int) -> None:
    input, target, weight = class_case()
    torch.library.opcheck(
        _ops.nll_loss, (input.requires_grad_(), target, weight, reduction, -100, False), test_utils=DIFFERENTIABLE
    )
    arguments = (input.detach(), target, weight, reduction, -100, False)
    torch.library.opcheck(_ops.nll_loss_forward, arguments, test_utils=BUILDING_BLOCK)
    grad_output = torch.ones_like(_ops.nll_loss_forward(*arguments))
    torch.library.opcheck(
        _ops.nll_loss_backward,
        (grad_output, target, weight, list(input.shape), torch.float32, reduction, -100, False),
        test_utils=BUILDING_BLOCK,
    )


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_binary_cross_entropy(reduction: int) -> None:
    input, target, weight = torch.rand(4, 6), torch.rand(4, 6), torch.rand(6)
    torch.library.opcheck(
        _ops.binary_cross_entropy, (input.requires_grad_(), target, weight, reduction), test_utils=DIFFERENTIABLE
    )
    arguments = (input.detach(), target, weight, reduction)
    torch.library.opcheck(_ops.binary_cross_entropy_forward, arguments, test_utils=BUILDING_BLOCK)
    if reduction != 0:
        for grad_output in ((), (0.5,)):
            with_gradient = (*arguments, *grad_output)
            torch.library.opcheck(_ops.binary_cross_entropy_with_gradient, with_gradient, test_utils=BUILDING_BLOCK)
    torch.library.opcheck(_ops.binary_cross_entropy_prepared, (input, *arguments[1:]), test_utils=DIFFERENTIABLE)
    loss, ticket = _ops.binary_cross_entropy_prepared(*arguments)
    torch.library.opcheck(
        _ops.binary_cross_entropy_prepared_backward,
        (torch.ones_like(loss), *arguments[:-1], ticket, reduction),
        test_utils=BUILDING_BLOCK,
    )
    grad_output = torch.ones_like(_ops.binary_cross_entropy_forward(*arguments))
    torch.library.opcheck(_ops.binary_cross_entropy_backward, (grad_output, *arguments), test_utils=BUILDING_BLOCK)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_binary_cross_entropy_with_logits(reduction: int) -> None:
    logits, target, weight = torch.randn(4, 6), torch.rand(4, 6), torch.rand(6)
    arguments = (logits.clone().requires_grad_(), target, weight, weight, reduction)
    torch.library.opcheck(_ops.binary_cross_entropy_with_logits, arguments, test_utils=DIFFERENTIABLE)
    torch.library.opcheck(_ops.binary_cross_entropy_with_logits_prepared, arguments, test_utils=DIFFERENTIABLE)
    arguments = (logits, target, weight, weight, reduction)
    torch.library.opcheck(_ops.binary_cross_entropy_with_logits_forward, arguments, test_utils=BUILDING_BLOCK)
    loss, ticket = _ops.binary_cross_entropy_with_logits_prepared(*arguments)
    torch.library.opcheck(
        _ops.binary_cross_entropy_with_logits_prepared_backward,
        (torch.ones_like(loss), *arguments[:-1], ticket, reduction),
        test_utils=BUILDING_BLOCK,
    )
    if reduction != 0:
        for grad_output in ((), (0.5,)):
            with_gradient = (*arguments, *grad_output)
            torch.library.opcheck(
                _ops.binary_cross_entropy_with_logits_with_gradient, with_gradient, test_utils=BUILDING_BLOCK
            )
    grad_output = torch.ones_like(_ops.binary_cross_entropy_with_logits_forward(*arguments))
    torch.library.opcheck(
        _ops.binary_cross_entropy_with_logits_backward, (grad_output, *arguments), test_utils=BUILDING_BLOCK
    )


def test_elementary_function() -> None:
    torch.library.opcheck(_ops.elementary_function, (torch.rand(5), 0), test_utils=BUILDING_BLOCK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_the_operator_is_torchs(dtype: torch.dtype) -> None:
    logits, target, weight = class_case(dtype)
    ours = logits.clone().requires_grad_()
    theirs = logits.clone().requires_grad_()
    torch.ops.fused_losses.cross_entropy(ours, target, weight, 1, -100, 0.1, False).backward()
    torch.nn.functional.cross_entropy(theirs, target, weight, label_smoothing=0.1).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_operator_refuses_what_it_has_no_kernel_for() -> None:
    logits, target, _ = class_case()
    operator = torch.ops.fused_losses.cross_entropy_forward
    bad_calls = {
        "the target's shape": (logits, target[:, :2], None, 1, -100, 0.0, False),
        "one value per class": (logits, target, torch.rand(6), 1, -100, 0.0, False),
        "the input's type": (logits, target, torch.rand(7).double(), 1, -100, 0.0, False),
        "label_smoothing": (logits, target, None, 1, -100, 1.5, False),
        "reduction": (logits, target, None, 7, -100, 0.0, False),
        "empty": (logits[:0], target[:0], None, 1, -100, 0.0, False),
        "class indices or probabilities": (logits, target.short(), None, 1, -100, 0.0, False),
        "this floating-point type": (logits.long(), target, None, 1, -100, 0.0, False),
    }
    for words, call in bad_calls.items():
        with pytest.raises(RuntimeError, match=words):
            operator(*call)
    with pytest.raises(IndexError, match=r"^Target 7 is out of bounds\.$"):
        operator(logits, torch.full((6, 3), 7), None, 1, -100, 0.0, False)
