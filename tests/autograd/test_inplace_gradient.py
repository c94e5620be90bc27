"""``inplace_gradient=True``: the gradient over the logits, and nothing corrupted in silence."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fused_losses
from fused_losses import functional as fused

MODIFIED = "modified by an inplace operation"

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "rows": lambda: torch.randn(7, 300),
    "long rows": lambda: torch.randn(2, 300_000),
    "few classes": lambda: torch.randn(300, 10),
    "two classes": lambda: torch.randn(300, 2),
    "one row": lambda: torch.randn(70),
    "inner axis": lambda: torch.randn(2, 21, 9, 17),
    "many classes, inner axis": lambda: torch.randn(2, 150, 33),
    "channels_last": lambda: torch.randn(2, 21, 9, 17).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(300, 70).t(),
}


def positions(logits: Tensor) -> tuple[int, ...]:
    return logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ()


def index_target(logits: Tensor) -> Tensor:
    classes = logits.shape[1 if logits.dim() > 1 else 0]
    target = torch.randint(classes, positions(logits))
    if target.dim():
        target.view(-1)[0] = -100
    return target


def gradient_of(leaf: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient at a non-leaf copy of ``leaf`` and the copy itself."""
    logits = leaf.detach().requires_grad_() * 1
    (gradient,) = torch.autograd.grad(loss_of(logits).sum(), logits)
    return gradient, logits.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cross_entropy_is_the_same_and_over_the_logits(layout: str, reduction: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    leaf = LAYOUTS[layout]().to(dtype)
    dim = 1 if leaf.dim() > 1 else 0
    weight = torch.rand(leaf.shape[dim]).to(dtype)
    probabilities = torch.empty_like(leaf).copy_(torch.randn_like(leaf).softmax(dim))  # of the logits' strides
    for target, options in (
        (index_target(leaf), {}),
        (index_target(leaf), {"weight": weight, "label_smoothing": 0.1}),
        (probabilities, {"weight": weight}),
    ):
        loss_of = partial(fused.cross_entropy, target=target, reduction=reduction, **options)
        expected, untouched = gradient_of(leaf, loss_of)
        torch.testing.assert_close(untouched, leaf, rtol=0, atol=0)
        gradient, logits = gradient_of(leaf, partial(loss_of, inplace_gradient=True))
        assert gradient.data_ptr() == logits.data_ptr()
        torch.testing.assert_close(logits, gradient, rtol=0, atol=0, equal_nan=True)
        # The exponential is computed anew instead of rescaled: a rounding or two apart.
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_bce_with_logits_is_the_same_and_over_the_logits(reduction: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    leaf = torch.randn(37, 80).to(dtype)
    options: dict[str, Any] = {"pos_weight": torch.rand(80).to(dtype), "reduction": reduction}
    target = torch.rand(37, 80).to(dtype)
    loss_of = fused.binary_cross_entropy_with_logits
    expected, _ = gradient_of(leaf, lambda x: loss_of(x, target, **options))
    gradient, logits = gradient_of(leaf, lambda x: loss_of(x, target, **options, inplace_gradient=True))
    assert gradient.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(gradient, expected)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda x, **options: fused.cross_entropy(x, torch.arange(len(x)) % x.shape[1], **options),
    "with_logits": lambda x, **options: fused.binary_cross_entropy_with_logits(
        x, torch.linspace(0, 1, x.numel(), dtype=x.dtype).view(x.shape), **options
    ),
}
each_loss = pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)


def make_logits(rows: int = 6, classes: int = 11) -> tuple[Tensor, Tensor]:
    leaf = torch.randn(rows, classes, requires_grad=True)
    return leaf, leaf * 1


@each_loss
def test_a_leaf_is_refused_in_torchs_words(loss_of: Callable[..., Tensor]) -> None:
    leaf, _ = make_logits()
    for logits in (leaf, leaf.view(11, 6), leaf[1:]):
        before = leaf.detach().clone()
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad is being used in an in-place"):
            loss_of(logits, inplace_gradient=True)
        torch.testing.assert_close(leaf.detach(), before, rtol=0, atol=0)


@each_loss
def test_without_a_gradient_the_keyword_does_nothing(loss_of: Callable[..., Tensor]) -> None:
    leaf, _ = make_logits()
    with torch.no_grad():
        torch.testing.assert_close(loss_of(leaf, inplace_gradient=True), loss_of(leaf))
    torch.testing.assert_close(loss_of(leaf.detach(), inplace_gradient=True), loss_of(leaf.detach()))


@each_loss
def test_two_inplace_losses_of_one_tensor_raise(loss_of: Callable[..., Tensor]) -> None:
    _, logits = make_logits()
    total = loss_of(logits, inplace_gradient=True) + loss_of(logits, inplace_gradient=True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        total.backward()


@each_loss
@pytest.mark.parametrize("inplace_first", [True, False])
def test_beside_another_loss_the_sum_is_right_or_torch_raises(
    loss_of: Callable[..., Tensor], inplace_first: bool
) -> None:
    others: list[Callable[[Tensor], Tensor]] = [
        loss_of,
        lambda x: F.cross_entropy(x, torch.zeros(len(x), dtype=torch.long)),
        lambda x: (x**2).sum(),
        lambda x: fused.cross_entropy(x, torch.zeros(len(x), dtype=torch.long), reduction="none").sum(),
    ]
    for other in others:
        leaf, logits = make_logits()
        terms = [loss_of(logits, inplace_gradient=True), other(logits)]
        expected = torch.autograd.grad(loss_of(leaf) + other(leaf), leaf)[0]
        total = terms[0] + terms[1] if inplace_first else terms[1] + terms[0]
        try:
            total.backward()
        except RuntimeError as error:
            assert MODIFIED in str(error)
            continue
        torch.testing.assert_close(leaf.grad, expected)


@each_loss
def test_a_producer_that_saved_its_result_raises(loss_of: Callable[..., Tensor]) -> None:
    leaf, _ = make_logits()
    loss = loss_of(leaf.tanh(), inplace_gradient=True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


@each_loss
def test_logits_modified_before_the_backward_raise(loss_of: Callable[..., Tensor]) -> None:
    _, logits = make_logits()
    loss = loss_of(logits, inplace_gradient=True)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


@each_loss
def test_a_kept_graph_gets_memory_of_its_own(loss_of: Callable[..., Tensor]) -> None:
    leaf, logits = make_logits()
    before = logits.detach().clone()
    (expected,) = torch.autograd.grad(loss_of(leaf), leaf)
    loss = loss_of(logits, inplace_gradient=True)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(logits.detach(), before, rtol=0, atol=0)
    (second,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(second, expected)
    assert second.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@each_loss
def test_double_backward(loss_of: Callable[..., Tensor]) -> None:
    leaf = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: loss_of(x * 1, inplace_gradient=True), leaf)


@each_loss
def test_the_version_is_counted_up(loss_of: Callable[..., Tensor]) -> None:
    _, logits = make_logits()
    version = logits._version
    torch.autograd.grad(loss_of(logits, inplace_gradient=True), logits)
    assert logits._version > version


@each_loss
def test_saved_tensor_hooks_get_memory_of_their_own(loss_of: Callable[..., Tensor]) -> None:
    leaf, logits = make_logits()
    before = logits.detach().clone()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        loss = loss_of(logits, inplace_gradient=True)
    loss.backward()
    torch.testing.assert_close(logits.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(loss_of(leaf), leaf)[0])


@each_loss
def test_expanded_logits_get_memory_of_their_own(loss_of: Callable[..., Tensor]) -> None:
    leaf = torch.randn(1, 11, requires_grad=True)
    logits = (leaf * 1).expand(6, 11)
    loss_of(logits, inplace_gradient=True).backward()
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(loss_of(leaf.expand(6, 11)), leaf)[0])


@each_loss
def test_negated_views_get_memory_of_their_own(loss_of: Callable[..., Tensor]) -> None:
    """The imaginary part of a conjugate holds the numbers of opposite sign, and a bit that says so."""
    leaf = torch.randn(6, 11, dtype=torch.complex64, requires_grad=True)
    logits = (leaf * 1).conj().imag
    assert logits.is_neg()
    loss_of(logits, inplace_gradient=True).backward()
    expected = torch.autograd.grad(loss_of((leaf * 1).conj().imag), leaf)[0]
    torch.testing.assert_close(leaf.grad, expected)


@each_loss
def test_a_target_in_the_same_memory_survives(loss_of: Callable[..., Tensor]) -> None:
    leaf = torch.randn(6, 11, requires_grad=True)
    logits = leaf * 1
    target = logits.detach()
    before = target.clone()
    function = fused.cross_entropy if loss_of is LOSSES["cross_entropy"] else fused.binary_cross_entropy_with_logits
    function(logits, target, inplace_gradient=True).backward()
    torch.testing.assert_close(target, before, rtol=0, atol=0)
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(function(leaf, before), leaf)[0])


@each_loss
@pytest.mark.parametrize("classes", [3, 11, 100])
def test_a_slice_leaves_its_surroundings_alone(loss_of: Callable[..., Tensor], classes: int) -> None:
    leaf = torch.randn(9, classes + 4, requires_grad=True)
    whole = leaf * 1
    before = whole.detach().clone()
    part = whole[1:-1, 2:-2]
    (gradient,) = torch.autograd.grad(loss_of(part, inplace_gradient=True), part)
    mask = torch.ones_like(before, dtype=torch.bool)
    mask[1:-1, 2:-2] = False
    torch.testing.assert_close(whole.detach()[mask], before[mask], rtol=0, atol=0)
    reference = before[1:-1, 2:-2].requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss_of(reference), reference)[0])


def test_through_a_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 500))
    data, target = torch.randn(2, 33, 8), torch.randint(500, (2, 33))
    gradients = []
    for inplace in (False, True):
        model.zero_grad()
        logits = model(data)
        fused.cross_entropy(logits.view(-1, 500), target.view(-1), inplace_gradient=inplace).mul(3).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_transforms_and_compile_ignore_it() -> None:
    target = torch.arange(6)
    leaf = torch.randn(6, 11)

    def loss_of(x: Tensor) -> Tensor:
        return fused.cross_entropy(x * 1, target, inplace_gradient=True)

    expected = torch.func.grad(lambda x: F.cross_entropy(x, target))(leaf)
    torch.testing.assert_close(torch.func.grad(loss_of)(leaf), expected)


def test_the_modules_take_it_by_keyword() -> None:
    for module_class, target in (
        (fused_losses.CrossEntropyLoss, torch.arange(6)),
        (fused_losses.BCEWithLogitsLoss, torch.rand(6, 11)),
    ):
        module = pickle.loads(pickle.dumps(module_class(reduction="sum", inplace_gradient=True)))
        assert module.inplace_gradient
        _, logits = make_logits()
        (gradient,) = torch.autograd.grad(module(logits, target), logits)
        assert gradient.data_ptr() == logits.data_ptr()
        assert not module_class().inplace_gradient
    converted = fused_losses.convert(torch.nn.CrossEntropyLoss())
    assert isinstance(converted, fused_losses.CrossEntropyLoss)
    assert not converted.inplace_gradient


def test_patched_functions_take_it() -> None:
    with fused_losses.patched():
        _, logits = make_logits()
        loss = F.cross_entropy(logits, torch.arange(6), inplace_gradient=True)  # type: ignore[call-arg]
        (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.data_ptr() == logits.data_ptr()


def hook_on_the_logits(logits: Tensor) -> None:
    logits.register_hook(lambda gradient: gradient * (logits.detach().abs() < 0.5))


def prehook_of_their_node(logits: Tensor) -> None:
    assert logits.grad_fn is not None
    logits.grad_fn.register_prehook(lambda gradients: (gradients[0] * (logits.detach().abs() < 0.5),))


def hook_of_their_node(logits: Tensor) -> None:
    assert logits.grad_fn is not None
    logits.grad_fn.register_hook(lambda inputs, _: (inputs[0] * (logits.detach().abs() < 0.5), *inputs[1:]))


def multi_grad_hook(logits: Tensor) -> None:
    keep = logits.detach().clone()

    def check(_: Any) -> None:
        torch.testing.assert_close(logits.detach(), keep, rtol=0, atol=0)

    torch.autograd.graph.register_multi_grad_hook([logits], check)


HOOKS = [hook_on_the_logits, prehook_of_their_node, hook_of_their_node, multi_grad_hook, Tensor.retain_grad]


@pytest.mark.parametrize("when", ["before the loss", "after the loss"])
@pytest.mark.parametrize("of", ["logits", "what they are a view of"])
@pytest.mark.parametrize("add_hook", HOOKS, ids=lambda hook: hook.__name__)
@each_loss
def test_hooks_that_read_the_logits_find_them(
    loss_of: Callable[..., Tensor], add_hook: Callable[[Tensor], Any], of: str, when: str
) -> None:
    gradients = []
    for inplace_gradient in (False, True):
        torch.manual_seed(0)
        leaf, base = make_logits()
        logits = base.view(11, 6) if of == "what they are a view of" else base
        hooked = base if of == "what they are a view of" else logits
        before = logits.detach().clone()
        if when == "before the loss":
            add_hook(hooked)
        loss = loss_of(logits, inplace_gradient=inplace_gradient)
        if when == "after the loss":
            add_hook(hooked)
        loss.backward()
        torch.testing.assert_close(logits.detach(), before, rtol=0, atol=0)
        gradients.append((leaf.grad, base.grad if base.retains_grad else None))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@each_loss
def test_hooks_that_were_removed_are_no_obstacle(loss_of: Callable[..., Tensor]) -> None:
    _, logits = make_logits()
    logits.register_hook(lambda gradient: None).remove()
    assert logits.grad_fn is not None
    logits.grad_fn.register_prehook(lambda gradients: None).remove()
    (gradient,) = torch.autograd.grad(loss_of(logits, inplace_gradient=True), logits)
    assert gradient.data_ptr() == logits.data_ptr()
