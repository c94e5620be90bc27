"""The losses of a linear layer where the host does not wait for the tensors: on a GPU, and under emulation."""

import pytest
import torch
import torch.nn.functional as F
from compiled_graphs import check_compiled

import fused_losses
from fused_losses.autograd import linear_chunks, placement
from fused_losses.functional import linear_cross_entropy, linear_token_statistics, token_statistics

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["mean", "sum", "none"]
ROWS, FEATURES, CLASSES = 11, 6, 40


@pytest.fixture(autouse=True)
def chunks_of_some_rows(monkeypatch):
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 3)


def problem(device, dtype=torch.float32, by_probability=False):
    leaves = [torch.randn(size).to(device, dtype) for size in ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))]
    if by_probability:
        return leaves, torch.randn(ROWS, CLASSES).softmax(1).to(device, dtype)
    target = torch.randint(CLASSES, (ROWS,), device=device)
    target[1::4] = -100
    return leaves, target


class Rounded(torch.autograd.Function):
    """Logits that are rounded to a type, as is their gradient."""

    @staticmethod
    def forward(ctx, logits, dtype):
        ctx.dtype = dtype
        return logits.to(dtype).to(logits.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.dtype).to(gradient.dtype), None


def by_torch(
    input,
    linear_weight,
    target,
    *,
    linear_bias,
    token_weight=1,
    reduction="mean",
    rounded_to=None,
    logit_scale=1.0,
    softcap=None,
    lse_square_scale=0.0,
    **options,
):
    logits = F.linear(input, linear_weight, linear_bias)
    logits = logits if rounded_to is None else Rounded.apply(logits, rounded_to)
    x = logits * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    losses = F.cross_entropy(x, target, reduction="none", **options)
    counts = losses.new_ones(ROWS) if target.is_floating_point() else target != -100
    losses = losses + torch.where(counts != 0, lse_square_scale * x.logsumexp(1) ** 2, 0)
    losses = losses * token_weight
    if reduction == "none":
        return losses
    class_weight = options.get("weight")
    is_weighted = class_weight is not None and not target.is_floating_point()
    weights = class_weight[target.clamp(min=0)] if is_weighted else torch.ones_like(losses)
    return losses.sum() / (torch.where(counts != 0, weights, 0).sum() if reduction == "mean" else 1)


def outcome(function, leaves, target, grad_output, **options):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    loss = function(*leaves[:2], target, linear_bias=leaves[2], **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, grad_output.to(loss.dtype))]


def in_float64(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"weight": torch.linspace(0.5, 2, CLASSES)},
    {"weight": torch.linspace(0.5, 2, CLASSES), "label_smoothing": 0.1},
    {"token_weight": torch.linspace(-1, 1, ROWS)},  # 0 in the middle
    {"logit_scale": -0.7, "lse_square_scale": 1e-2},
    {"logit_scale": 1.4, "softcap": 3.0, "lse_square_scale": 1e-2, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("by_probability", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_option(device, dtype, reduction, by_probability, options):
    """In float64, but for logits and gradient of logits in 16 bits, which a GPU rounds once."""
    leaves, target = problem(device, dtype, by_probability)
    options = {name: v.to(device, dtype) if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    grad_output = (torch.rand(ROWS if reduction == "none" else ()) + 0.5).to(device, dtype)
    ours = outcome(linear_cross_entropy, leaves, target, grad_output, reduction=reduction, **options)
    options = {name: in_float64(value) for name, value in options.items()}
    leaves = [in_float64(leaf) for leaf in leaves]
    if dtype.itemsize == 2 and not placement.is_on_host(target):
        options["rounded_to"] = dtype
    exact = outcome(by_torch, leaves, in_float64(target), in_float64(grad_output), reduction=reduction, **options)
    roundings = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 32 * torch.finfo(dtype).eps
    for our, exact_ in zip(ours, exact, strict=True):
        assert our.dtype == dtype
        torch.testing.assert_close(our.double(), exact_, rtol=0, atol=roundings * exact_.abs().max().item())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_of_no_counting_rows_are_zeros(device, smoothing, reduction):
    """Also those of a mean, which is NaN: a batch without a label must not reach the weights."""
    leaves, target = problem(device)
    grad_output = torch.ones(ROWS if reduction == "none" else (), device=device)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    loss, *gradients = outcome(linear_cross_entropy, leaves, target.fill_(-100), grad_output, **options)
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("terms", [{}, {"softcap": 3.0, "lse_square_scale": 1e-2}], ids=["plain", "terms"])
def test_the_logits_are_never_there_and_what_counts_not_is_left_out(device, reduction, terms):
    leaves, target = problem(device)
    leaves[0][1] = float("nan")
    fused_losses.routes(reset=True)
    grad_output = torch.ones(ROWS if reduction == "none" else (), device=device)
    found = outcome(linear_cross_entropy, leaves, target, grad_output, reduction=reduction, **terms)
    assert fused_losses.routes() == {"linear_cross_entropy": {"kernel": 1}}
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("scale", [1.0, 0.125, 1024.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kept_graph_and_any_grad_output(device, dtype, scale):
    leaves, target = problem(device, dtype)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])
    grad_output = torch.tensor(scale).to(loss)
    found, again = (torch.autograd.grad(loss, leaves, grad_output, retain_graph=keeps) for keeps in (True, False))
    assert all(map(torch.equal, found, again))
    _, *expected = outcome(by_torch, [leaf.double() for leaf in leaves], target, grad_output.double())
    for ours, exact in zip(found, expected, strict=True):
        atol = 8 * torch.finfo(dtype).eps * exact.abs().max().item()
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=atol)


def test_probabilities_of_a_vocabulary_are_no_subnormal_float16_numbers(device):
    """Of 30,000 classes each has 2^-15: in a mean over the rows a gradient of float16 would have three bits left."""
    leaves = [torch.ones(ROWS, 2), torch.zeros(30_000, 2), torch.zeros(30_000)]
    leaves = [leaf.to(device, torch.float16) for leaf in leaves]
    target = torch.zeros(ROWS, dtype=torch.int64, device=device)
    scaled = torch.tensor(2.0**14, device=device)
    *_, of_weight, of_bias = outcome(linear_cross_entropy, leaves, target, scaled)
    expected = 2.0**14 / 30_000
    for gradient in (of_weight[1:], of_bias[1:]):
        assert (gradient.float() / expected - 1).abs().max() <= 2 * torch.finfo(torch.float16).eps


def test_the_host_waits_for_nothing_but_the_number_of_rows(device, monkeypatch):
    leaves, target = problem(device)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    if placement.is_on_host(leaves[0]):
        pytest.skip("the host has the tensors itself")

    def wait(tensor):
        raise AssertionError("the host waits for the device")

    for name in ("item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    for options in (
        {},
        {"reduction": "sum"},
        {"token_weight": torch.ones(ROWS, device=device)},
        {"label_smoothing": 0.1},
        {"softcap": 3.0, "lse_square_scale": 1e-2},
    ):
        loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], **options)
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_compiled_graph_holds_the_operator(device, reduction, dtype):
    leaves, target = problem(device, dtype)
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def loss(*leaves):
        return linear_cross_entropy(leaves[0] * 2, leaves[1], target, linear_bias=leaves[2], reduction=reduction)

    check_compiled(loss, leaves, f"linear_cross_entropy_{'recomputed' if reduction == 'none' else 'prepared'}")


def test_rows_that_do_not_count_have_zeros_in_a_compiled_graph_whatever_grad_output_is(device):
    leaves, target = problem(device)
    hidden = leaves[0].requires_grad_()
    loss = torch.compile(linear_cross_entropy, backend="aot_eager")(hidden, leaves[1], target)
    (gradient,) = torch.autograd.grad(loss, hidden, torch.full_like(loss, torch.inf))
    assert (gradient[target == -100] == 0).all() and not gradient[target != -100].isfinite().any()


@pytest.mark.parametrize("options", [{}, {"logit_scale": -0.7, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_of_tokens(device, dtype, options):
    leaves, target = problem(device, dtype)
    found = []
    for function in (linear_token_statistics, None):
        own = [leaf.detach().double() if function is None else leaf.detach() for leaf in leaves]
        own = [leaf.requires_grad_() for leaf in own]
        if function is None:
            tokens = token_statistics(F.linear(*own), target, **options)
        else:
            fused_losses.routes(reset=True)
            tokens = function(*own[:2], target, linear_bias=own[2], **options)
            assert fused_losses.routes() == {"linear_token_statistics": {"kernel": 1}}
        total = (tokens.log_prob + tokens.log_sum_exp + tokens.entropy).double()
        found.append([total.detach(), *(g.double() for g in torch.autograd.grad(total.sum(), own))])
    tolerance = 16 * torch.finfo(dtype).eps
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())
