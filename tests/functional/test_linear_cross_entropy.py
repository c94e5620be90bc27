"""Cross-entropy of a linear layer by chunks of rows, against the layer and the loss apart, in float64."""

import itertools
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch_abilities
from compiled_graphs import check_compiled
from parity import assert_not_less_exact
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import fused_losses
from fused_losses.autograd import linear_chunks
from fused_losses.autograd.linear_chunk_sizes import CHUNK_BYTES, OVERWRITTEN_BYTES, rows_of_chunk
from fused_losses.autograd.linear_chunks import LinearChunks
from fused_losses.autograd.row_losses import RowLoss
from fused_losses.functional import linear_cross_entropy, linear_token_statistics

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["mean", "sum", "none"]
BY_THREES = SimpleNamespace(batch_chunk_size=3)  # what is read of torch's options
EXTRAS = [
    {"logit_scale": 0.7},
    {"softcap": 3.0},
    {"lse_square_scale": 0.05},
    {"logit_scale": -1.3, "softcap": 2.0, "lse_square_scale": 0.1},
]


def reference(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=-100,
    label_smoothing=0.0,
    logit_scale=1.0,
    softcap=None,
    lse_square_scale=0.0,
    token_weight=None,
    options=None,
):
    """By their definitions, of rows (N, F) and one head."""
    x = F.linear(input, linear_weight, linear_bias) * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    cross_entropy = fused_losses.torch_losses.torch_function("cross_entropy")
    smoothing = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "weight": weight}
    losses = cross_entropy(x, target, reduction="none", **smoothing)
    counts = torch.ones_like(losses, dtype=torch.bool) if target.is_floating_point() else target != ignore_index
    losses = losses + torch.where(counts, lse_square_scale * x.logsumexp(-1).square(), 0)
    losses = losses if token_weight is None else losses * token_weight
    if reduction == "none":
        return losses
    class_weight = torch.ones(x.size(1), dtype=x.dtype) if weight is None else weight
    weights = torch.where(counts, class_weight[target.clamp(min=0)], 0) if target.dim() == 1 else counts
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def layer(rows=11, features=6, classes=9, dtype=torch.float64):
    sizes = [(rows, features), (classes, features), (classes,)]
    return [torch.randn(size).to(dtype).requires_grad_() for size in sizes]


def indices(rows=11, classes=9):
    target = torch.randint(classes, (rows,))
    target[1::4] = -100
    return target


def probabilities(rows=11, classes=9, dtype=torch.float64):
    return torch.randn(rows, classes).softmax(1).to(dtype)


def loss_and_gradients(function, leaves, target, grad_output=None, **options):
    input, weight, *bias = leaves
    loss = function(input, weight, target, linear_bias=bias[0] if bias else None, **options)
    grad_output = torch.ones_like(loss) if grad_output is None else grad_output.to(loss.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, wanted, grad_output)]


def check(leaves, target, **options):
    """Against the reference in float64, to a few hundred roundings of it; a random grad_output."""
    grad_output = torch.randn(reference(leaves[0], leaves[1], target, **options).shape)
    ours = loss_and_gradients(linear_cross_entropy, leaves, target, grad_output, **options)
    expected = loss_and_gradients(reference, leaves, target, grad_output, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.fixture(autouse=True)
def chunks_of_some_rows(monkeypatch):
    """Several chunks even of small problems."""
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 3)


@pytest.mark.parametrize("of_target", [indices, probabilities])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_option(device, reduction, with_bias, weighted, smoothing, of_target):
    weight = torch.rand(9, dtype=torch.float64) if weighted else None
    leaves = layer() if with_bias else layer()[:2]
    check(leaves, of_target(), reduction=reduction, weight=weight, label_smoothing=smoothing)


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("of_target", [indices, probabilities])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.arange(1.0, 10).double()}], ids=str)
@pytest.mark.parametrize("weighted_tokens", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options_beyond_torchs(reduction, weighted_tokens, options, of_target, extras):
    token_weight = torch.linspace(-1, 1, 11).double() if weighted_tokens else None  # 0 in the middle
    check(layer(), of_target(), reduction=reduction, token_weight=token_weight, **options, **extras)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("of_target", [indices, probabilities])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_less_exact_than_torchs_floating_point(dtype, of_target, reduction):
    """16-bit tensors beside torch in float32: nothing is rounded to 16 bits but the results."""
    leaves = layer(40, 20, 70, dtype)
    target = of_target(40, 70)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    grad_output = torch.rand(torch.Size([40] if reduction == "none" else [])).to(dtype)

    def in_type(type):
        of_type = [leaf.detach().to(type).requires_grad_() for leaf in leaves]
        aim = target.to(dtype).to(type) if target.is_floating_point() else target
        return of_type, aim, grad_output

    ours = loss_and_gradients(
        linear_cross_entropy, leaves, target.to(dtype) if target.is_floating_point() else target, grad_output,
        reduction=reduction,
    )  # fmt: skip
    torchs = loss_and_gradients(reference, *in_type(computed), reduction=reduction)
    exact = loss_and_gradients(reference, *in_type(torch.float64), reduction=reduction)
    for name, our, torchs_, exact_ in zip(("loss", "input", "weight", "bias"), ours, torchs, exact, strict=True):
        assert our.dtype == dtype
        # Sums of 40 to 70 products in another order, each with roundings of its own.
        terms = 16 * exact_.abs().amax()
        assert_not_less_exact(our, torchs_, exact_, terms, what=name)


@pytest.mark.parametrize(
    "options", [{}, {"weight": torch.linspace(0.5, 2, 9).double()}, {"label_smoothing": 0.2}], ids=str
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("by_probability", [False, True])
@pytest.mark.parametrize("inner", [(2,), (2, 3)], ids=str)
def test_weights_of_several_heads(inner, by_probability, reduction, options):
    input, weight = layer()[:2]
    weight = torch.randn(9, *inner, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(9, *inner, dtype=torch.float64, requires_grad=True)
    if by_probability:
        target = torch.randn(11, 9, *inner, dtype=torch.float64).softmax(1)
    else:
        target = torch.randint(9, (11, *inner))
        target[0], target[1, 0] = -100, -100  # all of a row, and a part of one
    leaves = (input, weight, bias)
    torchs = torch_abilities.linear_cross_entropy
    shape = torchs(input, weight, target, reduction=reduction).shape
    grad_output = torch.randn(shape, dtype=torch.float64)
    ours = loss_and_gradients(linear_cross_entropy, leaves, target, grad_output, reduction=reduction, **options)
    expected = loss_and_gradients(torchs, leaves, target, grad_output, reduction=reduction, **options)
    torch.testing.assert_close(ours, expected)
    scaled = loss_and_gradients(linear_cross_entropy, leaves, target, grad_output, reduction=reduction, logit_scale=0.5)
    half = [leaf.detach() / 2 if i else leaf for i, leaf in enumerate(leaves)]
    torch.testing.assert_close(scaled[0], torchs(input, half[1], target, linear_bias=half[2], reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_of_any_number_of_axes(reduction):
    input, weight, bias = layer(12)
    target = indices(12)
    expected = reference(input, weight, target, linear_bias=bias, reduction=reduction)
    ours = linear_cross_entropy(
        input.view(2, 3, 2, 6), weight, target.view(2, 3, 2), linear_bias=bias, reduction=reduction
    )
    assert ours.shape == (() if reduction != "none" else (2, 3, 2))
    torch.testing.assert_close(ours.view(expected.shape), expected)
    soft = probabilities(12)
    ours = linear_cross_entropy(input.view(3, 4, 6), weight, soft.view(3, 4, 9), reduction=reduction)
    torch.testing.assert_close(ours.flatten(), reference(input, weight, soft, reduction=reduction).flatten())
    one = linear_cross_entropy(input[0], weight, target[0], reduction=reduction)
    torch.testing.assert_close(one, F.cross_entropy(weight @ input[0], target[0], reduction=reduction))


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("shape", [(4, 2), (8,), (2, 4, 1), (2, 2, 2), (1, 8), (4, 2, 9), (8, 9), (2, 9, 4)], ids=str)
def test_a_target_of_another_shape_is_an_error(shape, options):
    """Of the rows as one axis there may be as many, in another order: those of a transposed target."""
    target = torch.rand(shape) if 9 in shape else torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match="target"):
        linear_cross_entropy(torch.randn(2, 4, 3), torch.randn(9, 3), target, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_rows", [0, 3])
@pytest.mark.parametrize("inner", [(), (2,)], ids=str)
def test_no_classes(inner, num_rows, reduction):
    for target in (torch.zeros(num_rows, *inner, dtype=torch.int64), torch.zeros(num_rows, 0, *inner)):
        outcomes = []
        for loss in (linear_cross_entropy, torch_abilities.linear_cross_entropy):
            try:
                arguments = (torch.randn(num_rows, 4), torch.randn(0, *inner, 4), target)
                outcomes.append(loss(*arguments, reduction=reduction, label_smoothing=0.1))
            except (IndexError, RuntimeError) as error:
                outcomes.append((type(error), str(error)))
        ours, theirs = outcomes
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        else:
            assert ours == theirs


@pytest.mark.parametrize("place", [0, 1, 2, 3], ids=["input", "weight", "target", "bias"])
@pytest.mark.parametrize("loss", [linear_cross_entropy, lambda *a, **o: linear_token_statistics(*a, **o).log_prob])
def test_tensors_on_several_devices_are_an_error(loss, place):
    """Of a layer that is partly without memory torch computes numbers from none."""
    tensors = [torch.randn(2, 3), torch.randn(5, 3), torch.tensor([0, 4]), torch.randn(5)]
    tensors[place] = tensors[place].to("meta")
    with pytest.raises(RuntimeError, match=r"on the (same|expected) device"):
        loss(*tensors[:3], linear_bias=tensors[3])
    everywhere = [tensor.to("meta") for tensor in tensors]
    assert loss(*everywhere[:3], linear_bias=everywhere[3]).is_meta


def test_strided_tensors():
    input, weight, bias = layer(22, 12, 18)
    target = indices(22)
    leaves = [leaf.detach()[::2, ::2].t().contiguous().t().requires_grad_() for leaf in (input, weight)]
    check([*leaves, bias.detach()[::2].requires_grad_()], target[::2])
    expanded = input.detach()[:1, :6].expand(11, 6).requires_grad_()
    check([expanded, leaves[1]], indices())


@pytest.mark.parametrize("type", [torch.uint8, torch.int32])
def test_other_types_of_indices(type):
    input, weight, bias = layer()
    target = indices().clamp(min=0)
    same = [linear_cross_entropy(input, weight, t, linear_bias=bias) for t in (target, target.to(type))]
    assert torch.equal(*same)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_uint8_indices_of_more_classes_than_they_can_hold(reduction):
    """Neither the number of classes nor ignore_index is taken modulo 256."""
    leaves, target = layer(classes=300), torch.tensor([156] + [200] * 10)
    ours = loss_and_gradients(linear_cross_entropy, leaves, target.to(torch.uint8), reduction=reduction)
    same = loss_and_gradients(linear_cross_entropy, leaves, target, reduction=reduction)
    assert all(map(torch.equal, ours, same))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows_no_counting_rows_and_one_class(reduction):
    check(layer(0), torch.zeros(0, dtype=torch.int64), reduction=reduction)  # a mean of nothing is NaN
    check(layer(), torch.full((11,), -100), reduction=reduction)
    check(layer(classes=1), torch.zeros(11, dtype=torch.int64), reduction=reduction)
    gradients = loss_and_gradients(linear_cross_entropy, layer(), torch.full((11,), -100), reduction=reduction)[1:]
    assert all((gradient == 0).all() for gradient in gradients)


def test_only_the_gradients_that_are_wanted():
    leaves, target = layer(), indices()
    expected = loss_and_gradients(reference, leaves, target)[1:]
    for wanted in itertools.product([False, True], repeat=3):
        for leaf, wants in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(wants)
        if not any(wanted):
            assert not linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2]).requires_grad
            continue
        found = loss_and_gradients(linear_cross_entropy, leaves, target)[1:]
        torch.testing.assert_close(found, list(itertools.compress(expected, wanted)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("extras", [{}, EXTRAS[-1]], ids=str)
def test_the_gradient_of_token_weights(extras, reduction):
    """Also of weight 0, whose row counts in it."""
    leaves, target = layer(), indices()
    token_weight = torch.linspace(-1, 1, 11).double().requires_grad_()
    found = []
    for function in (linear_cross_entropy, reference):
        loss = function(*leaves[:2], target, reduction=reduction, token_weight=token_weight, **extras)
        found.append(torch.autograd.grad(loss.square().sum(), [*leaves[:2], token_weight]))
    torch.testing.assert_close(*found)


# Where torch's own chunks go wrong (2.13.0).


def test_an_ignored_row_with_minus_infinity_at_class_0():
    input, weight, bias = layer()
    target = indices()
    with torch.no_grad():
        input[1] = 0.0
        input[1, 0] = 1.0
        weight[0, 0] = -float("inf")
        input[[i for i in range(11) if target[i] != -100], 0] = 1.0
        target[target == 0] = 1
    for found in (
        loss_and_gradients(linear_cross_entropy, [input, weight, bias], target),
        loss_and_gradients(linear_cross_entropy, [input, weight, bias], target, reduction="none"),
    ):
        assert found[0].isfinite().all()
        assert (found[1][target == -100] == 0).all()


def test_what_is_in_an_ignored_row_is_nobodys_business():
    input, weight, bias = layer()
    target = indices()
    expected = loss_and_gradients(linear_cross_entropy, [input, weight, bias], target)
    with torch.no_grad():
        input[target == -100] = float("nan")
    torch.testing.assert_close(loss_and_gradients(linear_cross_entropy, [input, weight, bias], target), expected)


@pytest.mark.parametrize("bad", [9, -1, 2**40])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"weight": torch.ones(9).double()}], ids=str)
def test_a_bad_target_is_an_index_error(options, bad):
    input, weight, _ = layer()
    target = indices()
    target[3] = bad
    with pytest.raises(IndexError, match=rf"^Target {bad} is out of bounds\.$"):
        linear_cross_entropy(input, weight, target, **options)


@pytest.mark.parametrize("extras", [{}, EXTRAS[-1]], ids=str)
def test_func_grad_and_its_company(extras):
    input, weight, bias = (leaf.detach() for leaf in layer())
    target = indices()

    def total(function):
        return lambda *leaves: function(*leaves[:2], target, linear_bias=leaves[2], **extras)

    for transform in (
        lambda f: torch.func.grad(f, (0, 1, 2))(input, weight, bias),
        lambda f: torch.func.jvp(f, (input, weight, bias), (input, weight, bias)),
        lambda f: torch.func.hessian(f)(input, weight, bias),
        lambda f: torch.vmap(f, (None, 0, None))(input, torch.stack([weight, 2 * weight]), bias),
    ):
        torch.testing.assert_close(transform(total(linear_cross_entropy)), transform(total(reference)))


def test_a_16_bit_loss_is_rounded_once():
    leaves, target = layer(40, 20, 70, torch.bfloat16)[:2], indices(40, 70)
    ours = linear_cross_entropy(*leaves, target)
    assert ours == reference(*(leaf.double() for leaf in leaves), target).bfloat16()


# What a backward may be asked for.


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_layer_modified_between_loss_and_backward(reduction):
    """By an optimizer's step between two losses, say: the gradients were computed with the loss."""
    leaves, target = layer(), indices()
    expected = loss_and_gradients(linear_cross_entropy, leaves, target, reduction=reduction)
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction)
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(2)
    found = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close([loss, *found], expected)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        torch.autograd.grad(loss, leaves, create_graph=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 65536.0, 1e-3, 1e30, float("inf"), float("nan")])
def test_any_grad_output(scale, dtype):
    leaves, target = layer(dtype=dtype), indices()
    loss = linear_cross_entropy(*leaves[:2], target)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves[:2]]
    exact = reference(*doubles, target)
    grad_output = torch.tensor(scale).to(dtype)
    found = torch.autograd.grad(loss, leaves[:2], grad_output)
    expected = torch.autograd.grad(exact, doubles, grad_output.double())
    epsilon = max(torch.finfo(dtype).eps, torch.finfo(torch.float64).eps * 16)
    for ours, reference_ in zip(found, expected, strict=True):
        rounded = reference_.to(dtype).double()
        assert torch.equal(ours.isnan(), rounded.isnan())
        finite = rounded.isfinite() & ours.isfinite()
        assert finite.any() or not torch.isfinite(grad_output) or rounded.isinf().any()
        largest = reference_[finite].abs().amax() if finite.any() else 0.0
        bound = {"rtol": 2 * epsilon, "atol": float(64 * torch.finfo(torch.float32).eps * largest)}
        torch.testing.assert_close(ours.double()[finite], rounded[finite], **bound)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_kept_graph_gives_the_same_again_in_memory_of_its_own(reduction):
    leaves, target = layer(), indices()
    loss = linear_cross_entropy(*leaves[:2], target, reduction=reduction).sum()
    first = torch.autograd.grad(loss, leaves[:2], retain_graph=True)
    expected = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.fill_(7)
    second = torch.autograd.grad(loss * 2, leaves[:2], retain_graph=True)
    torch.testing.assert_close(list(second), [2 * gradient for gradient in expected])
    for gradient in second:
        gradient.fill_(7)
    assert all(map(torch.equal, torch.autograd.grad(loss, leaves[:2]), expected))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaves[:2])


def test_a_weight_that_was_modified_before_an_unreduced_loss_went_back_is_torchs_error():
    leaves, target = layer(), indices()
    loss = linear_cross_entropy(*leaves[:2], target, reduction="none").sum()
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("extras", [{}, EXTRAS[-1], {"softcap": 2.0, "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_and_second_derivatives(reduction, extras):
    leaves, target = layer(4, 3, 5), indices(4, 5)
    token_weight = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def function(input, weight, bias, token_weight):
        options = {"linear_bias": bias, "token_weight": token_weight, "reduction": reduction, **extras}
        return linear_cross_entropy(input, weight, target, **options)

    assert torch.autograd.gradcheck(function, (*leaves, token_weight), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, (*leaves, token_weight))


def test_gradients_of_probabilities_and_of_class_weights():
    input, weight, _ = layer()
    target, class_weight = probabilities().requires_grad_(), torch.rand(9, dtype=torch.float64, requires_grad=True)
    everything = (input, weight, target, class_weight)
    ours, expected = (
        torch.autograd.grad(f(input, weight, target, weight=class_weight), everything)
        for f in (linear_cross_entropy, reference)
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant, reduction):
    leaves, target = layer(), indices()

    def step(*leaves):
        return linear_cross_entropy(leaves[0].sin(), leaves[1], target, linear_bias=leaves[2], reduction=reduction)

    checkpoint(step, *leaves, use_reentrant=use_reentrant).backward()
    found = [leaf.grad for leaf in leaves]
    torch.testing.assert_close(found, list(torch.autograd.grad(step(*leaves), leaves)))


def test_hooks_run_once():
    input, weight, bias = layer()
    hidden = input * 2
    calls = []
    hidden.register_hook(lambda gradient: calls.append("input"))
    weight.register_hook(lambda gradient: calls.append("weight"))
    for create_graph in (False, True):
        loss = linear_cross_entropy(hidden, weight, indices(), linear_bias=bias)
        torch.autograd.grad(loss, (input, weight), create_graph=create_graph, retain_graph=True)
        assert sorted(calls) == ["input", "weight"]
        calls.clear()


def test_two_losses_of_one_layer():
    leaves, target = layer(), indices()
    ours, expected = (
        torch.autograd.grad(
            f(*leaves[:2], target) + 0.3 * f(leaves[0] * 2, leaves[1], target, reduction="sum"), leaves[:2]
        )
        for f in (linear_cross_entropy, reference)
    )
    torch.testing.assert_close(ours, expected)


def test_gradients_accumulate_in_grad():
    leaves, target = layer(), indices()
    for _ in range(2):
        linear_cross_entropy(*leaves[:2], target).backward()
    expected = torch.autograd.grad(reference(*leaves[:2], target), leaves[:2])
    torch.testing.assert_close([leaf.grad for leaf in leaves[:2]], [2 * gradient for gradient in expected])


# What surrounds a call.


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_teachers_probabilities_made_in_inference_mode(reduction):
    with torch.inference_mode():
        target = probabilities()
    leaves, options = layer(), {"reduction": reduction, "label_smoothing": 0.1}
    found = loss_and_gradients(linear_cross_entropy, leaves, target, **options)
    torch.testing.assert_close(found, loss_and_gradients(linear_cross_entropy, leaves, target.clone(), **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_has_the_rules_of_the_layer_and_of_the_loss(backward_inside, dtype):
    leaves, target = layer(40, 20, 70, torch.float32), indices(40, 70)
    outcomes = []
    for function in (linear_cross_entropy, torch_abilities.linear_cross_entropy):
        with torch.autocast("cpu", dtype):
            loss = function(*leaves[:2], target, linear_bias=leaves[2])
            if backward_inside:
                gradients = torch.autograd.grad(loss, leaves)
        outcomes.append((loss, *(gradients if backward_inside else torch.autograd.grad(loss, leaves))))
    ours, torchs = outcomes
    assert [result.dtype for result in ours] == [result.dtype for result in torchs] == [torch.float32] * 4
    rounded = [leaf.detach().to(dtype).double().requires_grad_() for leaf in leaves]
    exact = loss_and_gradients(reference, rounded, target)
    for our, torchs_, exact_ in zip(ours, torchs, exact, strict=True):
        largest = exact_.abs().amax()
        assert (our - exact_).abs().amax() <= (torchs_ - exact_).abs().amax() + 1e-6 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extras", [{}, EXTRAS[-1]], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_compiled_graph_has_no_break_and_holds_the_operator(reduction, extras, dtype):
    leaves, target = layer(dtype=dtype), indices()

    def loss(*leaves):
        options = {"linear_bias": leaves[2], "reduction": reduction, **extras}
        return linear_cross_entropy(leaves[0] * 2, leaves[1], target, **options)

    check_compiled(loss, leaves, f"linear_cross_entropy_{'recomputed' if reduction == 'none' else 'prepared'}")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_compiled_graph_differentiates_the_weights_of_tokens(reduction, dynamic):
    leaves, target = layer(), indices()
    token_weight = torch.linspace(-1, 1, len(target), dtype=leaves[0].dtype).requires_grad_()

    def loss(input, weight, token_weight):
        return linear_cross_entropy(input, weight, target, token_weight=token_weight, reduction=reduction)

    check_compiled(loss, [*leaves[:2], token_weight], "linear_cross_entropy_recomputed", dynamic)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_of_a_graph_that_nobody_traces_is_an_error(reduction):
    """A backend of AOTAutograd refuses it itself. Without one the terms through the layer would be missing."""
    leaves, target = layer(), indices()
    compiled = torch.compile(linear_cross_entropy, backend="eager", fullgraph=True)
    loss = compiled(leaves[0], leaves[1], target, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice|no autograd formula"):
        torch.autograd.grad(loss + gradient.square().sum(), leaves[0])


def test_the_operator_is_described_to_torch():
    leaves, target = layer(), indices()
    arguments = (*leaves, target, None, None, [True, True, True], None, 9, 1, -100, 0.0, 1.0, 0.0, 0.0, torch.float64)
    everything = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.fused_losses.linear_cross_entropy_prepared.default, arguments, test_utils=everything
    )
    token_weight = torch.rand(len(target), dtype=torch.float64, requires_grad=True)
    for reduction in (0, 1):
        options = (None, 9, reduction, -100, 0.1, 1.0, 5.0, 0.1, torch.float64)
        for tensors, wants in (((*leaves, target, None, None), False), ((*leaves, target, None, token_weight), True)):
            operator = torch.ops.fused_losses.linear_cross_entropy_recomputed.default
            torch.library.opcheck(operator, (*tensors, wants, *options), test_utils=everything)


def test_modes_and_subclasses_see_the_operators():
    from torch.utils.flop_counter import FlopCounterMode

    leaves, target = layer(), indices()
    with FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy(*leaves[:2], target)
    assert counter.get_total_flops() == 2 * 11 * 6 * 9
    torch.testing.assert_close(loss, reference(*leaves[:2], target))

    class Subclass(torch.Tensor):
        pass

    loss = linear_cross_entropy(leaves[0].as_subclass(Subclass), leaves[1], target, softcap=2.0)
    assert type(loss) is Subclass
    torch.testing.assert_close(loss.as_subclass(torch.Tensor), reference(*leaves[:2], target, softcap=2.0))


@pytest.mark.parametrize("rows", [(11,), (1, 11)], ids=str)
def test_a_mode_takes_away_nothing_that_is_beyond_torch(rows):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    (input, weight, *_), target = layer(), indices()
    with Mode():
        loss = linear_cross_entropy(input.view(*rows, -1), weight, target.view(rows).int())
    torch.testing.assert_close(loss, reference(input, weight, target))


@pytest.mark.parametrize("function", [linear_cross_entropy, lambda *call: linear_token_statistics(*call).log_prob])
def test_gradients_enabled_inside_of_inference_mode(function):
    (input, weight, *_), target = layer(), indices()
    with torch.inference_mode(), torch.enable_grad():
        loss = function(input * 1, weight, target)
    assert not loss.requires_grad and loss.is_inference()
    torch.testing.assert_close(loss, function(input, weight, target))


def test_which_way_a_call_goes():
    leaves, target = layer(), indices()
    fused_losses.routes(reset=True)
    linear_cross_entropy(*leaves[:2], target)
    assert fused_losses.routes() == {"linear_cross_entropy": {"kernel": 1}}


TORCHS_OPTIONS = getattr(torch.nn, "LinearCrossEntropyOptions", None)


@pytest.mark.parametrize(
    "options", [BY_THREES, *([] if TORCHS_OPTIONS is None else [TORCHS_OPTIONS(batch_chunk_size=4)])], ids=str
)
def test_options_choose_the_rows_of_a_chunk(options, monkeypatch):
    seen = []
    logits = LinearChunks.logits
    monkeypatch.setattr(LinearChunks, "logits", lambda self, rows: seen.append(len(rows)) or logits(self, rows))
    leaves, target = layer(), indices().clamp(min=0)
    loss = linear_cross_entropy(*leaves[:2], target, options=options)
    torch.testing.assert_close(loss, reference(*leaves[:2], target))
    assert seen == [3, 3, 3, 2] if options is BY_THREES else seen == [4, 4, 3]


@pytest.mark.skipif(TORCHS_OPTIONS is None, reason="this torch has no such options")
@pytest.mark.parametrize(
    ("method", "size", "extras"),
    [
        ("aspect_ratio", 5, {}),
        ("aspect_ratio", 8, {}),  # what the method says
        ("auto", 5, {}),
        (None, 5, {}),
        ("aspect_ratio", 5, {"label_smoothing": 0.1}),  # torch looks at no options then
    ],
)
def test_a_size_and_a_method_that_disagree_are_torchs_error(method, size, extras):
    options = TORCHS_OPTIONS(batch_chunk_size=size, chunking_method=method)
    leaves, target = layer(), indices()
    outcomes = []
    for function in (linear_cross_entropy, torch.nn.functional.linear_cross_entropy):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(*leaves[:2], target, options=options, **extras)
            outcomes.append(None)
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0] is not None) == ((method, size, extras) == ("aspect_ratio", 5, {}))


@pytest.mark.parametrize("with_token_weight", [False, True])
@pytest.mark.parametrize("of_target", [indices, probabilities])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_that_take_the_place_of_the_logits(reduction, of_target, with_token_weight, monkeypatch):
    monkeypatch.setattr(linear_chunks, "CHUNK_BYTES", 0)
    made = []
    monkeypatch.setattr(RowLoss, "sum_and_gradient", lambda *arguments: made.append(arguments))
    options = {"reduction": reduction, "label_smoothing": 0.1, "weight": torch.rand(9, dtype=torch.float64)}
    target = of_target()
    if with_token_weight:
        options["token_weight"] = torch.rand(len(target), dtype=torch.float64)
    check(layer(), target, **options)
    assert not made


@pytest.mark.parametrize(
    ("num_rows", "num_logits", "rows"),
    [
        (2048, 32000, 416),  # 500 fit, 496 of them by sixteens, so five chunks, and these are equal
        (16384, 100000, 288),  # 160 in 64 MB are too few
        (512, 128256, 176),
        (120, 128256, 120),  # one chunk of 64 MB
        (1024, 62500, 256),  # just enough
        (100, 32000, 100),  # one chunk
        (0, 32000, 1),
        (10**6, 10, 10**6),
        (64, 10**9, 16),  # however large a row is
    ],
)
def test_the_rows_of_a_chunk(num_rows, num_logits, rows):
    assert rows_of_chunk(num_rows, num_logits, 64, 4, True) == rows
    fit = CHUNK_BYTES // (num_logits * 4)
    assert rows <= 16 or rows * num_logits * 4 <= (CHUNK_BYTES if fit >= min(num_rows, 256) else OVERWRITTEN_BYTES)


@pytest.mark.parametrize(
    ("num_rows", "num_logits", "in_features", "rows"),
    [
        (8192, 32000, 1024, 1648),  # 2000 in 128 MB; five chunks, equal
        (8192, 32000, 4096, 4096),  # no larger than a gradient of the weight
        (8192, 128256, 512, 1024),  # for products at full speed
        (8192, 10**6, 64, 496),  # a gigabyte
        (3000, 100, 16, 3000),
    ],
)
def test_the_rows_of_a_chunk_on_a_gpu(num_rows, num_logits, in_features, rows):
    assert rows_of_chunk(num_rows, num_logits, in_features, 2, False) == rows


def test_errors():
    input, weight, bias = layer()
    target = indices()
    with pytest.raises(RuntimeError, match="expected equal input and linear_weight last dimensions"):
        linear_cross_entropy(input[:, :3], weight, target)
    with pytest.raises(RuntimeError, match=r"expected linear_bias shape \(9,\), got \(3,\)"):
        linear_cross_entropy(input, weight, target, linear_bias=bias[:3])
    with pytest.raises(RuntimeError, match="linear_weight with dimensionality at least 2"):
        linear_cross_entropy(input, bias, target)
    with pytest.raises(RuntimeError, match="ignore_index cannot be specified when target contains probabilities"):
        linear_cross_entropy(input, weight, probabilities(), ignore_index=0)
    with pytest.raises(ValueError, match="Expected input batch_size"):
        linear_cross_entropy(input, weight, target[:3])
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        linear_cross_entropy(input, weight, target, reduction="median")
    with pytest.raises(RuntimeError, match="same dtype"):
        linear_cross_entropy(input.float(), weight, target)
    with pytest.raises(ValueError, match="softcap must be positive"):
        linear_cross_entropy(input, weight, target, softcap=0.0)
    with pytest.raises(ValueError, match="logit_scale"):
        linear_cross_entropy(input, weight, target, logit_scale=0.0)
    with pytest.raises(ValueError, match="Expected token_weight of shape"):
        linear_cross_entropy(input, weight, target, token_weight=torch.ones(3))


@pytest.mark.slow
def test_the_most_that_a_step_holds_is_two_chunks(monkeypatch):
    """Whatever the number of rows: beyond its inputs, its gradients and a few numbers for each row."""
    monkeypatch.undo()
    from benchmarks.cpu_device import CpuDevice

    device = CpuDevice()
    sizes = [(3000, 20000), (600, 100_000)]  # two tensors for a chunk, and one

    def summed_statistics(*tensors):
        return sum(linear_token_statistics(*tensors)[:3])

    losses = [linear_cross_entropy, partial(linear_cross_entropy, reduction="none"), summed_statistics]
    for dtype, function, (num_rows, num_classes) in itertools.product([torch.float32, torch.bfloat16], losses, sizes):
        input, weight = torch.randn(num_rows, 8).to(dtype), torch.randn(num_classes, 8).to(dtype)
        leaves = [input.requires_grad_(), weight.requires_grad_()]
        target = torch.randint(num_classes, (num_rows,))

        def step(leaves=leaves, target=target, function=function):
            torch.autograd.grad(function(*leaves, target).sum(), leaves)

        with fused_losses.limited_gradient_pool(0):
            peak = device.peak_bytes(step)
        gradients = sum(leaf.numel() * (4 + leaf.itemsize) for leaf in leaves)
        assert peak is not None
        assert peak - gradients <= 2 * CHUNK_BYTES + 5e6 < num_rows * num_classes * 4


@pytest.mark.parametrize("bound", [11 * 9 * 8, 11 * 9 * 8 - 1, 0])
@pytest.mark.parametrize("of_target", [lambda: indices().clamp(min=0), probabilities])
@pytest.mark.parametrize("with_token_weight", [False, True])
def test_an_unreduced_loss_keeps_small_logits(with_token_weight, of_target, bound, monkeypatch):
    """Up to a bound, of one chunk, and not through hooks. A kept graph may be used again, a freed one may not."""
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 11)
    monkeypatch.setattr(linear_chunks, "CHUNK_BYTES", bound)
    computed = []
    logits_into = linear_chunks.logits_into
    monkeypatch.setattr(linear_chunks, "logits_into", lambda *them: computed.append(them) or logits_into(*them))
    leaves, target, grad_output = layer(), of_target(), torch.randn(11, dtype=torch.float64)
    token_weight = torch.rand(11, dtype=torch.float64).requires_grad_() if with_token_weight else None
    leaves += [token_weight] if with_token_weight else []

    def loss_of(function):
        options = {"token_weight": token_weight, "reduction": "none"}
        return function(*leaves[:2], target, linear_bias=leaves[2], **options)

    loss = loss_of(linear_cross_entropy)
    expected = torch.autograd.grad(loss_of(reference), leaves, grad_output)
    for keeps in (True, True, False):
        found = torch.autograd.grad(loss, leaves, grad_output, retain_graph=keeps)
        torch.testing.assert_close(found, expected)
    assert len(computed) == (1 if bound == 11 * 9 * 8 else 4)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, leaves, grad_output)


@pytest.mark.parametrize("rows_of_chunk", [3, 11])
def test_small_logits_are_kept_of_one_chunk_without_hooks_alone(rows_of_chunk, monkeypatch):
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: rows_of_chunk)
    leaves, target = layer(), indices().clamp(min=0)

    def node_of(loss):  # which is a view of what the Function returns
        return loss.grad_fn.next_functions[0][0]

    plain = linear_cross_entropy(*leaves[:2], target, reduction="none")
    assert (node_of(plain).logits is None) == (rows_of_chunk == 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda it: it, lambda it: it):
        packed = linear_cross_entropy(*leaves[:2], target, reduction="none")
    assert node_of(packed).logits is None
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plain.sum().backward()


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_of_torchs_operators_and_of_no_rows(heads):
    input, weight = torch.randn(4, 3), torch.randn(5, heads, 3)
    target = torch.randint(5, (4, heads))
    leaf = input.clone().requires_grad_()
    linear_cross_entropy(leaf, weight, target).backward()
    gradient = torch.func.grad(lambda x: linear_cross_entropy(x, weight, target))(input)
    torch.testing.assert_close(gradient, leaf.grad)
    empty = linear_cross_entropy(torch.randn(0, 3), weight, torch.zeros(0, heads, dtype=torch.long), reduction="none")
    assert empty.shape == (0, heads)


@pytest.mark.parametrize("function", [linear_cross_entropy, fused_losses.functional.linear_token_statistics])
def test_meta_tensors_have_shapes_and_no_autocast(function):
    input, weight, target = (t.to("meta") for t in (torch.randn(4, 3), torch.randn(5, 3), torch.zeros(4).long()))
    with torch.autocast("cpu"):
        result = function(input, weight, target)
    loss = result if function is linear_cross_entropy else result.log_prob
    assert loss.is_meta
    assert loss.dtype == torch.float32
    assert loss.shape == (() if function is linear_cross_entropy else (4,))


def test_the_weight_of_an_ignored_row_has_no_part():
    input, weight, target = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([1, -100, 2, 3])
    token_weight = torch.tensor([1.0, float("nan"), 1.0, 2.0])
    losses = [
        linear_cross_entropy(x, weight, target, token_weight=token_weight)
        for x in (input, input.clone().requires_grad_())
    ]
    assert losses[0].isfinite()
    torch.testing.assert_close(*losses)


def test_weights_of_several_heads_in_a_graph_of_any_size():
    """Of sizes that Dynamo holds symbols for."""
    torch.compiler.reset()
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=True)
    for heads in (3, 4):
        x, weight, target = torch.randn(7, 8), torch.randn(5, heads, 8), torch.randint(5, (7, heads))
        torch.testing.assert_close(compiled(x, weight, target), linear_cross_entropy(x, weight, target))
