"""The first chunk's logits in the memory of the weight's gradient: same numbers, and no memory for them."""

from types import SimpleNamespace

import pytest
import torch
from parity import assert_not_less_exact
from test_linear_cross_entropy import check, indices, layer, loss_and_gradients, probabilities

import fused_losses
from fused_losses.autograd import linear_chunks, linear_products
from fused_losses.autograd.linear_chunk_sizes import rows_in_gradient
from fused_losses.autograd.linear_chunks import LinearChunks
from fused_losses.autograd.linear_gradients import LinearGradients
from fused_losses.autograd.linear_products import product_over_operand
from fused_losses.functional import linear_cross_entropy


@pytest.fixture
def lent_rows(monkeypatch):
    """Of chunks of 3 rows the first has those that 20 features leave room for, 16; products go block by block."""
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 3)
    monkeypatch.setattr(linear_products, "_COPIED_BYTES", 500)
    lent = []
    borrow = LinearChunks.borrow
    monkeypatch.setattr(LinearChunks, "borrow", lambda self, g: lent.append(borrow(self, g)))
    yield
    assert lent


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_rows", [5, 17, 30])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_numbers(lent_rows, reduction, num_rows, smoothing, with_bias):
    """Rows that count for nothing among them; 5 rows, all that there are, and some chunks more."""
    options = {"reduction": reduction, "weight": torch.rand(40, dtype=torch.float64), "label_smoothing": smoothing}
    check(layer(num_rows, 20, 40)[: 3 if with_bias else 2], indices(num_rows, 40), **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("num_rows", [8, 30])
@pytest.mark.parametrize("weighted_tokens", [False, True])
def test_gradients_that_the_backward_computes(lent_rows, weighted_tokens, num_rows, reduction):
    """From the statistics of the forward's chunks, which are others: unreduced, or saved through hooks."""
    token_weight = torch.linspace(-1, 1, num_rows).double() if weighted_tokens else None
    with torch.autograd.graph.saved_tensors_hooks(lambda it: it.clone(), lambda it: it):
        check(layer(num_rows, 20, 40), indices(num_rows, 40), reduction=reduction, token_weight=token_weight)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_backward_of_a_compiled_graph(lent_rows, reduction):
    leaves, target = layer(30, 20, 40), indices(30, 40)

    def loss(*leaves):
        return linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(of(*leaves), leaves) for of in (compiled, loss))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"lse_square_scale": 0.1}, {"token_weight": True}], ids=str)
def test_options_beyond_torchs(lent_rows, options):
    if "token_weight" in options:
        options = {"token_weight": torch.linspace(-1, 1, 30).double()}
    check(layer(30, 20, 40), indices(30, 40), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_in_memory_of_its_own(lent_rows, dtype):
    leaves = [it.to(dtype).requires_grad_() for it in (torch.randn(30, 20), torch.randn(40, 20))]
    target = torch.randint(40, (30,))
    lent = loss_and_gradients(linear_cross_entropy, leaves, target)
    options = SimpleNamespace(batch_chunk_size=3)
    own = loss_and_gradients(linear_cross_entropy, leaves, target, options=options)
    exact = loss_and_gradients(linear_cross_entropy, [it.detach().double().requires_grad_() for it in leaves], target)
    for numbers in zip(lent, own, exact, strict=True):
        assert_not_less_exact(*numbers)


@pytest.mark.parametrize(("heads", "target"), [((), probabilities(30, 40).float()), ((3,), torch.randint(40, (30, 3)))])
def test_targets_for_which_the_kernels_would_copy_the_logits(heads, target, monkeypatch):
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 3)
    monkeypatch.setattr(LinearChunks, "borrow", lambda *_: pytest.fail("nothing is to be lent"))
    leaves = [torch.randn(30, 20, requires_grad=True), torch.randn(40, *heads, 20, requires_grad=True)]
    linear_cross_entropy(*leaves, target).backward()


def test_nobody_lends_a_gradient_that_is_not_wanted_nor_below_rows_that_were_asked_for(monkeypatch):
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 3)
    input, weight, _ = (leaf.detach() for leaf in layer(30, 20, 40))
    chunks = LinearChunks(input, weight, None, (40,), None, None)
    LinearGradients(chunks, (True, False, True), lends=True)
    assert [chunk.end - chunk.begin for chunk in chunks] == [3] * 10
    chunks = LinearChunks(input, weight, None, (40,), None, chunk_rows=4)
    LinearGradients(chunks, (True, True, True), lends=True)
    assert [chunk.end - chunk.begin for chunk in chunks] == [4] * 7 + [2]


@pytest.mark.parametrize(
    ("num_rows", "in_features", "chunk_rows", "rows"),
    [
        (512, 2048, 176, 512),  # all of them
        (8192, 4096, 240, 3840),  # as many as leave a sixteenth
        (8192, 4096, 256, 0),  # a chunk has enough of its own
        (200, 4096, 200, 0),  # one chunk
        (8192, 256, 240, 0),  # fewer than in a chunk
        (8192, 64, 32, 48),
    ],
)
def test_how_many_rows(num_rows, in_features, chunk_rows, rows):
    assert rows_in_gradient(num_rows, in_features, chunk_rows, 4) == rows


@pytest.mark.parametrize("copied_bytes", [0, 100, 1 << 20])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(50, 16, 14), (50, 16, 1), (1, 3, 2), (7, 16, 15), (0, 4, 2)])
def test_a_product_over_its_operand(rows, columns, inner, copied_bytes, monkeypatch):
    monkeypatch.setattr(linear_products, "_COPIED_BYTES", copied_bytes)
    total = torch.randn(rows, columns, dtype=torch.float64)
    a = total.view(-1)[rows * (columns - inner) :].view(rows, inner)
    b = torch.randn(inner, columns, dtype=torch.float64)
    expected = a @ b
    product_over_operand(total, a, b)
    torch.testing.assert_close(total, expected)


def test_a_step_takes_no_memory_for_them():
    """Beyond its inputs, gradients and the copied rows."""
    from benchmarks.cpu_device import CpuDevice

    device = CpuDevice()
    leaves = [torch.randn(600, 720, requires_grad=True), torch.randn(100_000, 720, requires_grad=True)]
    target = torch.randint(100_000, (600,))
    with fused_losses.limited_gradient_pool(0):
        peak = device.peak_bytes(lambda: torch.autograd.grad(linear_cross_entropy(*leaves, target), leaves))
    assert peak is not None
    assert peak - sum(leaf.nbytes for leaf in leaves) <= 2 * linear_products._COPIED_BYTES < 600 * 100_000 * 4
