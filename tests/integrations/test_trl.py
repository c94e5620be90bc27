"""TRL's functions over their options, and where they are replaced."""

import inspect
import pickle
import sys
import types

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed")

from trl.trainer import utils

import fused_losses
from fused_losses.integrations import trl as bridge

# In a tuple: enable() finds what is a global.
NAMES = ("selective_log_softmax", "entropy_from_logits", "selective_log_softmax_and_entropy")
STOCK = tuple(getattr(utils, name) for name in NAMES if hasattr(utils, name))


@pytest.fixture(autouse=True)
def disabled():
    yield
    if bridge.is_enabled():  # it looks into every module
        bridge.disable()
    assert all(getattr(utils, stock.__name__) is stock for stock in STOCK)
    assert getattr(utils, "_ChunkedLogProbFunction", None) is HEAD[0]


def result(function, logits, *arguments, **options):
    logits = logits.clone().requires_grad_()
    value = function(logits, *arguments, **options)
    return value.detach(), torch.autograd.grad(value, logits, torch.ones_like(value))[0]


def assert_close(ours, stock, dtype):
    for our_tensor, stock_tensor in zip(ours, stock, strict=True):
        assert our_tensor.dtype == stock_tensor.dtype
        if dtype.itemsize == 2:
            atol = 4 * torch.finfo(dtype).eps * stock_tensor.abs().max().item()
            torch.testing.assert_close(our_tensor, stock_tensor, rtol=0, atol=atol)
        else:
            torch.testing.assert_close(our_tensor, stock_tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_selective_log_softmax(dtype, temperature, several, masked):
    logits = (3 * torch.randn(2, 5, 41)).to(dtype)
    index = torch.randint(41, (2, 5, 3) if several else (2, 5))
    options = dict(temperature=temperature)
    if masked:
        options["row_mask"] = (torch.rand(index.shape) < 0.6).int()
    stock = result(STOCK[0], logits, index, **options)
    assert_close(result(bridge.selective_log_softmax, logits, index, **options), stock, dtype)


@pytest.mark.skipif(len(STOCK) < 3, reason="this TRL has no selective_log_softmax_and_entropy")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy_requires_grad", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_both_at_once(dtype, temperature, entropy_requires_grad, masked):
    logits = (3 * torch.randn(2, 5, 41)).to(dtype)
    index = torch.randint(41, (2, 5))
    options = dict(temperature=temperature, entropy_requires_grad=entropy_requires_grad)
    if masked:
        options["row_mask"] = (torch.rand(index.shape) < 0.6).int()

    def combined(function):
        def of_logits(logits):
            log_prob, entropy = function(logits, index, **options)
            return log_prob + 2 * entropy

        return result(of_logits, logits)

    assert_close(combined(bridge.selective_log_softmax_and_entropy), combined(STOCK[2]), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 5), (300,), (2, 3, 4)])
def test_entropy_from_logits(dtype, shape):
    logits = (3 * torch.randn(*shape, 41)).to(dtype)
    stock = result(STOCK[1], logits, chunk_size=7)
    assert_close(result(bridge.entropy_from_logits, logits, chunk_size=7), stock, dtype)


HEAD = (getattr(utils, "_ChunkedLogProbFunction", None),)
needs_head = pytest.mark.skipif(HEAD[0] is None, reason="this TRL has no head without logits")


def head_results(dtype, outputs, bias=True, temperature=0.7, softcap=None, weight_dtype=None, rows=7, scale=1.5):
    """The stock head's, ours, and the calls that took a kernel."""
    hidden, weight = torch.randn(rows, 16).to(dtype), (0.3 * torch.randn(41, 16)).to(weight_dtype or dtype)
    layer = [hidden, weight, *([torch.randn(41).to(weight.dtype)] if bias else [])]
    targets = torch.randint(41, (rows,))
    logits = torch.nn.functional.linear(*(tensor.float() for tensor in layer))
    targets[: rows // 2] = logits.argmax(-1)[: rows // 2]
    results = []
    for enable in (False, True):
        if enable:
            bridge.enable()
        fused_losses.routes(reset=True)
        leaves = [tensor.clone().requires_grad_() for tensor in layer]
        values = utils._ChunkedLogProbFunction.apply(
            *leaves, *([] if bias else [None]), targets, temperature, 10, softcap, scale, outputs
        )
        of_loss = (values[0] * torch.arange(1.0, rows + 1)).sum()
        if values[1] is not None:
            of_loss = of_loss + 2 * values[1].sum()
        results.append((*values, *torch.autograd.grad(of_loss, leaves)))
    return *results, fused_losses.routes().get("linear_token_statistics", {}).get("kernel", 0)


@needs_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("outputs", [("log_probs",), ("log_probs", "entropy", "is_top1")])
def test_a_head_without_logits(dtype, bias, softcap, outputs):
    stock, ours, kernels = head_results(dtype, outputs, bias, softcap=softcap)
    assert kernels == 1
    # TRL rounds 16-bit logits, and has float32 log-probabilities of float64 logits.
    tolerance = dict(rtol=3e-2, atol=6e-2) if dtype.itemsize == 2 else dict(rtol=1e-4, atol=1e-5)
    for our_tensor, stock_tensor in zip(ours, stock, strict=True):
        assert type(our_tensor) is type(stock_tensor)
        if our_tensor is not None and our_tensor.dtype != torch.bool:
            torch.testing.assert_close(our_tensor, stock_tensor, **tolerance)
        elif dtype.itemsize != 2 and our_tensor is not None:
            assert our_tensor.equal(stock_tensor) and our_tensor.any()


@needs_head
@pytest.mark.parametrize("options, kernels", [
    (dict(outputs=("log_probs", "mean_logits")), 1),
    (dict(outputs=("log_probs", "mean_logits"), bias=False), 1),
    (dict(outputs=("log_probs", "mean_logits"), softcap=2.0), 1),
    (dict(outputs=("log_probs", "log_sum_sq_probs")), 1),
    (dict(outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"), softcap=2.0), 1),
    (dict(outputs=("log_probs", "entropy"), scale=0.0), 0),
    (dict(outputs=("log_probs", "entropy"), weight_dtype=torch.float64), 1),
    (dict(outputs=("log_probs", "entropy", "is_top1", "mean_logits"), rows=0), 0),
])  # fmt: skip
def test_what_else_a_head_is_asked(options, kernels):
    stock, ours, kernels_taken = head_results(torch.float32, **options)
    assert kernels_taken == kernels
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)


@needs_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_policy_and_its_equal_reference_are_equal(dtype, softcap):
    """Whatever a trainer asks the one and not the other for: rewards are their difference."""
    asked = [("log_probs",), ("log_probs", "entropy", "mean_logits", "is_top1"), ("log_probs", "log_sum_sq_probs")]
    layer = [torch.randn(shape).to(dtype) for shape in ((300, 16), (41, 16), (41,))]
    targets = torch.randint(41, (300,))
    bridge.enable()
    results = []
    for outputs in asked:
        for differentiated in (False, True):
            leaves = [tensor.clone().requires_grad_(differentiated) for tensor in layer]
            results.append(
                utils._ChunkedLogProbFunction.apply(*leaves, targets, 0.7, 10, softcap, 1.5, outputs)[0].detach()
            )
    assert all(result.equal(results[0]) for result in results)


@needs_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_under_autocast(dtype):
    with torch.autocast("cpu", dtype):
        stock, ours, kernels = head_results(torch.float32, ("log_probs", "entropy", "mean_logits"))
    assert kernels == 1
    for our_tensor, stock_tensor in zip(ours, stock, strict=True):
        if stock_tensor is None:
            assert our_tensor is None
            continue
        torch.testing.assert_close(our_tensor, stock_tensor, rtol=3e-2, atol=6e-2)


def test_their_signatures_are_trls_and_they_are_pickled_by_name():
    def defaults(function):
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

    for stock in STOCK:
        ours = getattr(bridge, stock.__name__)
        assert pickle.loads(pickle.dumps(ours)) is ours is not getattr(fused_losses.functional, stock.__name__)
        assert defaults(ours).items() >= defaults(stock).items()


def test_a_temperature_that_is_not_positive_raises():
    for function in (STOCK[0], bridge.selective_log_softmax):
        with pytest.raises(ValueError, match="temperature must be positive"):
            function(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), temperature=0.0)


def test_whoever_imported_them_by_name_has_them_replaced_too(monkeypatch):
    early, late = types.ModuleType("early_client"), types.ModuleType("late_client")
    early.select = utils.selective_log_softmax
    monkeypatch.setitem(sys.modules, "early_client", early)
    bridge.enable()
    bridge.enable()
    assert bridge.is_enabled() and early.select is bridge.selective_log_softmax
    late.select = utils.selective_log_softmax
    monkeypatch.setitem(sys.modules, "late_client", late)
    logits, index = torch.randn(3, 7), torch.tensor([1, 2, 0])
    log_prob, entropy = utils.selective_log_softmax_and_entropy(logits, index)
    torch.testing.assert_close((log_prob, entropy), (STOCK[0](logits, index), STOCK[1](logits)))
    bridge.disable()
    assert early.select is late.select is STOCK[0] and not bridge.is_enabled()
