"""Statistics of the logits of a linear layer, against those of its logits."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from compiled_graphs import check_compiled

import fused_losses
from fused_losses.autograd import linear_chunks
from fused_losses.functional import TokenStatistics, linear_token_statistics, token_statistics

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = [{}, {"logit_scale": 0.7}, {"softcap": 3.0}, {"logit_scale": -1.3, "softcap": 2.0}]


@pytest.fixture(autouse=True)
def chunks_of_some_rows(monkeypatch):
    """Several chunks even of small problems."""
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 4)


def problem(shape=(11,), dtype=torch.float64):
    leaves = [torch.randn(*shape, 6), torch.randn(9, 6), torch.randn(9)]
    target = torch.randint(9, shape)
    target.view(-1)[1] = -100
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], target


def of_logits(input, weight, target, *, linear_bias=None, **options):
    return token_statistics(F.linear(input, weight, linear_bias), target, **options)


def with_gradients(function, leaves, target, grads, **options):
    results = function(*leaves[:2], target, linear_bias=leaves[2], **options)
    used = [(r, g.to(r.dtype)) for r, g in zip(results, grads, strict=False) if g is not None]
    return results, torch.autograd.grad([r for r, _ in used], leaves, [g for _, g in used])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_and_gradients(dtype, options):
    leaves, target = problem(dtype=dtype)
    grads = [torch.randn(11) for _ in range(3)]
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    in_type = [leaf.detach().to(computed).requires_grad_() for leaf in leaves]
    ours, gradients = with_gradients(linear_token_statistics, leaves, target, grads, **options)
    expected, expected_gradients = with_gradients(of_logits, in_type, target, grads, **options)
    assert isinstance(ours, TokenStatistics)
    torch.testing.assert_close(ours, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gradients_that_take_the_place_of_the_logits(dtype, monkeypatch):
    """As of chunks too large for two tensors; some rows at a time."""
    leaves, target = problem(dtype=dtype)
    grads = [torch.randn(11) for _ in range(3)]
    _, expected = with_gradients(linear_token_statistics, leaves, target, grads, softcap=3.0)
    monkeypatch.setattr(linear_chunks, "CHUNK_BYTES", 0)
    monkeypatch.setattr(linear_chunks, "_MOVED_BYTES", 3 * 9 * 8)
    _, gradients = with_gradients(linear_token_statistics, leaves, target, grads, softcap=3.0)
    assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("used", [u for u in itertools.product([False, True], repeat=3) if any(u)], ids=str)
def test_gradients_of_some_results_alone(used):
    leaves, target = problem()
    grads = [torch.randn(11) if uses else None for uses in used]
    _, ours = with_gradients(linear_token_statistics, leaves, target, grads)
    torch.testing.assert_close(ours, with_gradients(of_logits, leaves, target, grads)[1])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2), (0,)], ids=str)
def test_shapes(shape):
    leaves = [torch.randn(*shape, 6), torch.randn(9, 6)]
    target = torch.randint(9, shape)
    ours, expected = (f(*leaves, target) for f in (linear_token_statistics, of_logits))
    torch.testing.assert_close(ours, expected)
    assert all(result.shape == shape for result in ours)


def test_first_and_second_derivatives():
    leaves, target = problem((4,))

    def function(input, weight, bias):
        return linear_token_statistics(input, weight, target, linear_bias=bias, softcap=2.0)[:3]

    assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_transforms_and_autocast():
    leaves, target = problem(dtype=torch.float32)

    def total(function):
        def of_leaves(*leaves):
            tokens = function(*leaves[:2], target, linear_bias=leaves[2])
            return (tokens.log_prob + tokens.log_sum_exp.square() + tokens.entropy).sum()

        return of_leaves

    expected = torch.autograd.grad(total(of_logits)(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(total(linear_token_statistics), (0, 1, 2))(*leaves), expected)
    with torch.autocast("cpu", torch.bfloat16):
        loss = total(linear_token_statistics)(*leaves)
    rounded = [leaf.detach().bfloat16().float() for leaf in leaves]
    torch.testing.assert_close(loss, total(of_logits)(*rounded))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("used", ["log_prob", "log_sum_exp", "entropy", "all"])
def test_a_compiled_graph_has_no_break_and_holds_the_operator(used, dynamic):
    leaves, target = problem(dtype=torch.bfloat16)

    def loss(*leaves):
        tokens = linear_token_statistics(*leaves[:2], target, linear_bias=leaves[2], logit_scale=-0.7, softcap=3.0)
        return sum(tokens[:3]) + tokens.argmax if used == "all" else getattr(tokens, used)

    check_compiled(loss, leaves, "linear_token_statistics", dynamic)


def test_the_operators_are_described_to_torch():
    leaves, target = problem()
    everything = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    operator = torch.ops.fused_losses.linear_token_statistics.default
    torch.library.opcheck(operator, (*leaves, target, 1.3, 2.0, -100), test_utils=everything)
    no_bias = (*leaves[:2], None, target, 1.0, 0.0, -100)
    torch.library.opcheck(operator, no_bias, test_utils=everything)


def test_a_kept_graph():
    leaves, target = problem()
    total = linear_token_statistics(*leaves[:2], target).entropy.sum()
    first = torch.autograd.grad(total, leaves[:2], retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, leaves[:2])))


def test_errors_and_routes():
    (input, weight, bias), target = problem()
    with pytest.raises(IndexError, match=r"^Target 9 is out of bounds\.$"):
        linear_token_statistics(input, weight, torch.full((11,), 9))
    with pytest.raises(ValueError, match="Expected target of shape"):
        linear_token_statistics(input, weight, target[:2])
    with pytest.raises(ValueError, match="class indices"):
        linear_token_statistics(input, weight, target.double())
    with pytest.raises(RuntimeError, match="expected linear_bias shape"):
        linear_token_statistics(input, weight, target, linear_bias=bias[:2])
    fused_losses.routes(reset=True)
    linear_token_statistics(input, weight, target)
    assert fused_losses.routes() == {"linear_token_statistics": {"kernel": 1}}


@pytest.mark.parametrize("types", [(0, 1, 0), (1, 0, 0), (0, 0, 1)], ids=str)
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16], ids=str)
def test_types_that_a_linear_layer_does_not_mix(other, types):
    """A weight of another type would get a gradient of the input's."""
    (input, weight, bias), target = problem(dtype=torch.float32)
    dtypes = [other if is_other else torch.float32 for is_other in types]
    input, weight, bias = map(torch.Tensor.to, (input, weight, bias), dtypes)
    with pytest.raises(RuntimeError, match="dtype"):
        F.linear(input, weight, bias)
    with pytest.raises(RuntimeError, match="dtype"):
        linear_token_statistics(input, weight, target, linear_bias=bias)


@pytest.mark.parametrize("type", [torch.complex64, torch.int64], ids=str)
def test_no_statistics_of_numbers_that_are_not_of_floating_point(type):
    (input, weight, _), target = problem(dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="not implemented"):
        linear_token_statistics(input.detach().to(type), weight.detach().to(type), target)
    with pytest.raises(NotImplementedError, match="not implemented"):
        token_statistics(torch.ones(11, 9, dtype=type), target)
