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
