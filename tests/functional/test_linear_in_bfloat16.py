"""Linear losses whose products are computed in bfloat16, as where the processor has instructions for it.

Other processors run these tests too: their products in bfloat16 are slow, and come out the same but for the order of
the sum.
"""

import pytest
import torch
import torch.nn.functional as F
from compiled_graphs import check_compiled
from test_linear_cross_entropy import EXTRAS, indices, layer, loss_and_gradients, probabilities, reference

from fused_losses.autograd import linear_chunks, linear_operator, linear_products
from fused_losses.autograd.linear_chunk_sizes import rows_in_gradient, rows_of_chunk
from fused_losses.autograd.linear_chunks import LinearChunks
from fused_losses.autograd.linear_gradients import LinearGradients
from fused_losses.autograd.linear_products import add_product, has_instructions_for, product_dtype, product_over_operand
from fused_losses.functional import linear_cross_entropy, linear_token_statistics

CHUNKS = ["one chunk", "chunks of 17", "in the gradient"]


@pytest.fixture(autouse=True)
def products_in_bfloat16(monkeypatch):
    """Of small problems too, whatever this processor has."""
    monkeypatch.setattr(linear_products, "_has_bfloat16_instructions", lambda: True)
    monkeypatch.setattr(linear_products, "_FEWEST_MULTIPLICATIONS", 0)


@pytest.fixture(params=CHUNKS)
def chunks(request, monkeypatch):
    if request.param != CHUNKS[0]:
        monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 17)
    if request.param == CHUNKS[1]:
        monkeypatch.setattr(LinearChunks, "wants_to_borrow", lambda self: False)
    monkeypatch.setattr(linear_products, "_ADDED_BYTES", 10_000)  # several blocks
    monkeypatch.setattr(linear_products, "_COPIED_BYTES", 4_000)
    return request.param


def torchs_layer_and_loss(input, linear_weight, target, *, linear_bias=None, **options):
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def in_double(leaves):
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.linspace(0.5, 2, 300)}], ids=str)
@pytest.mark.parametrize("of_target", [indices, probabilities])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_less_exact_than_torchs_bfloat16(chunks, reduction, with_bias, of_target, options):
    leaves = layer(100, 128, 300, torch.bfloat16)[: 3 if with_bias else 2]
    target = of_target(100, 300)
    target = target.bfloat16() if target.is_floating_point() else target
    ours_options, exact_options = dict(options), dict(options)
    if "weight" in options:
        ours_options["weight"] = options["weight"].bfloat16()
        exact_options["weight"] = ours_options["weight"].double()
    ours = loss_and_gradients(linear_cross_entropy, leaves, target, reduction=reduction, **ours_options)
    torchs = loss_and_gradients(torchs_layer_and_loss, leaves, target, reduction=reduction, **ours_options)
    target = target.double() if target.is_floating_point() else target
    exact = loss_and_gradients(reference, in_double(leaves), target, reduction=reduction, **exact_options)
    for name, *numbers in zip(("loss", "input", "weight", "bias"), ours, torchs, exact, strict=False):
        assert numbers[0].dtype == torch.bfloat16
        ours_off, torchs_off = ((it - numbers[2]).norm() for it in numbers[:2])
        half_a_unit = 2**-9 * numbers[2].norm()  # a loss of one number has luck in its rounding
        assert ours_off <= torchs_off + (half_a_unit if name == "loss" else 0.2 * half_a_unit), name


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_options_beyond_torchs(chunks, reduction, extras):
    leaves, target = layer(100, 128, 300, torch.bfloat16), indices(100, 300)
    leaves = [leaf.detach().mul(0.3).requires_grad_() for leaf in leaves]
    token_weight = torch.linspace(0, 2, 100)
    options = {"reduction": reduction, **extras}
    ours = loss_and_gradients(linear_cross_entropy, leaves, target, token_weight=token_weight, **options)
    exact = loss_and_gradients(reference, in_double(leaves), target, token_weight=token_weight.double(), **options)
    for our, exact_ in zip(ours, exact, strict=True):
        assert (our - exact_).norm() <= 0.01 * exact_.norm()


@pytest.mark.parametrize("through_hooks", [False, True])
def test_what_all_rows_have_in_common_is_not_rounded(chunks, through_hooks):
    """Of 28 rows a mean's gradient at the target is -1/28, of which bfloat16 loses 0.2 %, in every row alike."""
    features = torch.rand(28, 512).add(1).bfloat16()
    weight = torch.zeros(3000, 512, dtype=torch.bfloat16, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda it: it, lambda it: it)
    with hooks if through_hooks else torch.enable_grad():
        loss = linear_cross_entropy(features, weight, torch.zeros(28, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, weight)
    exact = features.double().mean(0) * (1 / 3000 - 1)
    assert (gradient[0] / exact - 1).mean().abs() <= 5e-4


def test_many_chunks_are_added_up_in_float32(monkeypatch):
    """In bfloat16 the sum of 256 equal products would stop growing at some point."""
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 1)
    input = torch.ones(600, 1, dtype=torch.bfloat16)
    weight = torch.zeros(50, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(input, weight, torch.zeros(600, dtype=torch.int64), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient[0].item(), 600 * (1 / 50 - 1), rtol=2**-8, atol=0)


def test_where_rows_do_not_count(chunks):
    leaves = [leaf.detach() for leaf in layer(60, 64, 90, torch.bfloat16)[:2]]
    leaves[0][1::4] = torch.nan
    leaves = [leaf.requires_grad_() for leaf in leaves]
    target = indices(60, 90)
    ours = loss_and_gradients(linear_cross_entropy, leaves, target)
    assert all(result.isfinite().all() for result in ours)
    assert not ours[1][1::4].any()
    kept = [leaves[0].detach()[target != -100].requires_grad_(), leaves[1]]
    for our, alone in zip(ours, loss_and_gradients(linear_cross_entropy, kept, target[target != -100]), strict=True):
        torch.testing.assert_close(our[target != -100] if our.shape == leaves[0].shape else our, alone)
    nothing = loss_and_gradients(linear_cross_entropy, leaves, torch.full_like(target, -100), reduction="sum")
    assert not any(result.any() for result in nothing)


@pytest.mark.parametrize("grad_output", [1.0, 3.0, torch.inf])
@pytest.mark.parametrize("keeps", [False, True])
def test_backwards(chunks, keeps, grad_output):
    leaves, target = layer(60, 64, 90, torch.bfloat16), indices(60, 90)
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])
    first = torch.autograd.grad(loss, leaves, torch.tensor(grad_output).bfloat16(), retain_graph=keeps)
    assert [gradient.dtype for gradient in first] == [torch.bfloat16] * 3
    exact = loss_and_gradients(reference, in_double(leaves), target)[1:]
    if grad_output == torch.inf:  # 0 times infinity in the rows that count alone
        assert torch.equal(first[0].isnan().all(1), target != -100)
        assert not first[0][target == -100].any()
    else:
        for gradient, exact_ in zip(first, exact, strict=True):
            assert (gradient / grad_output - exact_).norm() <= 0.01 * exact_.norm()
    if keeps:
        again = torch.autograd.grad(loss, leaves, torch.tensor(grad_output).bfloat16())
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again, strict=True))


def test_statistics_of_tokens(chunks):
    leaves, target = layer(60, 64, 90, torch.bfloat16), indices(60, 90)
    tokens = linear_token_statistics(*leaves[:2], target, linear_bias=leaves[2])
    gradients = torch.autograd.grad((tokens.log_prob + tokens.entropy).sum(), leaves)
    exact = in_double(leaves)
    log_p = F.linear(*exact).log_softmax(-1)
    log_prob = torch.where(target == -100, 0, log_p.gather(1, target.clamp(min=0)[:, None])[:, 0])
    entropy = -(log_p.exp() * log_p).sum(-1)
    expected = torch.autograd.grad((log_prob + entropy).sum(), exact)
    pairs = [(tokens.log_prob, log_prob), (tokens.entropy, entropy), *zip(gradients, expected, strict=True)]
    for our, exact_ in pairs:
        assert (our - exact_).norm() <= 0.02 * exact_.norm()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_compiled_graph(chunks, reduction):
    leaves, target = layer(60, 64, 90, torch.bfloat16), indices(60, 90)

    def loss(*leaves):
        return linear_cross_entropy(leaves[0] * 2, leaves[1], target, linear_bias=leaves[2], reduction=reduction)

    check_compiled(loss, leaves, f"linear_cross_entropy_{'recomputed' if reduction == 'none' else 'prepared'}")


def test_a_graph_does_not_round_grad_output(monkeypatch):
    """A loss in float32 of bfloat16's products, as under autocast: a third, rounded, would be off in every element."""
    monkeypatch.setattr(linear_operator, "_FEWEST_ROUNDED", 0)
    torch.compiler.reset()
    input, weight = torch.randn(100, 64, requires_grad=True), torch.randn(900, 64)
    target = torch.randint(900, (100,))

    def loss(input):
        return linear_cross_entropy(input, weight, target)

    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(input)
    whole, third = (torch.autograd.grad(compiled, input, torch.tensor(g), retain_graph=True)[0] for g in (1.0, 1 / 3))
    used = whole != 0
    assert (3 * third[used].double() / whole[used].double() - 1).mean().abs() <= 5e-4


@pytest.mark.parametrize("grad_output", [1, 3])
def test_a_graph_holds_large_gradients_in_bfloat16(chunks, grad_output, monkeypatch):
    """The bits of eager mode for ``grad_output`` 1, else of one rounding more."""
    monkeypatch.setattr(linear_operator, "_FEWEST_ROUNDED", 0)
    torch.compiler.reset()
    leaves, target = layer(60, 64, 90, torch.bfloat16), indices(60, 90)
    held = []

    def loss(*leaves):
        return grad_output * linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])

    with torch.autograd.graph.saved_tensors_hooks(lambda it: held.append(it) or it, lambda it: it):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves)
    assert {it.dtype for it in held if it.is_floating_point() and it.shape in [leaf.shape for leaf in leaves]} == {
        torch.bfloat16
    }
    for our, of_eager in zip(*(torch.autograd.grad(of, leaves) for of in (compiled, loss(*leaves))), strict=True):
        torch.testing.assert_close(our, of_eager, rtol=0 if grad_output == 1 else 2**-7, atol=0)


def test_onednn_switched_off_between_forward_and_backward():
    leaves, target = layer(60, 64, 90, torch.bfloat16), indices(60, 90)
    loss = linear_cross_entropy(*leaves[:2], target, reduction="none")
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        gradients = torch.autograd.grad(loss.sum(), leaves[:2])
    exact = loss_and_gradients(reference, in_double(leaves[:2]), target, reduction="sum")[1:]
    for gradient, exact_ in zip(gradients, exact, strict=True):
        assert (gradient - exact_).norm() <= 0.05 * exact_.norm()


# The parts.


def test_which_type_products_are_in(monkeypatch):
    monkeypatch.setattr(linear_products, "_FEWEST_MULTIPLICATIONS", 1000)
    of = {dtype: torch.empty(1, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
    assert [product_dtype(it, 1000) for it in of.values()] == [*list(of)[:3], torch.float32]
    assert product_dtype(of[torch.bfloat16], 999) == torch.float32
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert product_dtype(of[torch.bfloat16], 1000) == torch.float32
    monkeypatch.setattr(linear_products, "_has_bfloat16_instructions", lambda: False)
    assert product_dtype(of[torch.bfloat16], 1000) == torch.float32
    assert not has_instructions_for(torch.bfloat16)


@pytest.mark.parametrize("total_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(50, 16, 14), (300, 40, 70), (1, 3, 2), (0, 4, 2), (5, 0, 3)])
@pytest.mark.parametrize("alpha", [1.0, -0.3])
def test_a_sum_of_products(alpha, rows, columns, inner, total_dtype, monkeypatch):
    monkeypatch.setattr(linear_products, "_ADDED_BYTES", 1000)
    total = torch.full((rows, columns), torch.nan, dtype=total_dtype)
    a, b = torch.randn(inner, rows).bfloat16().t(), torch.randn(inner, columns).bfloat16()
    product = alpha * (a.double() @ b.double())
    for is_first in (True, False):
        add_product(total, a, b, is_first=is_first, alpha=alpha)
        scale = 8 * 2**-8 if rows and columns else 1
        torch.testing.assert_close(total.double(), product if is_first else 2 * product, rtol=2**-7, atol=scale)


def test_a_product_over_its_operand(monkeypatch):
    monkeypatch.setattr(linear_products, "_COPIED_BYTES", 100)
    total = torch.randn(50, 16).bfloat16()
    a, b = total.view(-1)[100:].view(50, 14), torch.randn(14, 16).bfloat16()
    expected = (0.3 * (a.float() @ b.float())).bfloat16()
    product_over_operand(total, a, b, 0.3)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(
    ("num_rows", "num_logits", "rows"),
    [
        (2048, 32000, 688),  # 1000 fit in 64 MB; three chunks, equal
        (1024, 32000, 1024),  # one chunk rather than two
        (1872, 32000, 1872),
        (1900, 32000, 960),
        (512, 128256, 256),  # 464 in 120 MB
    ],
)
def test_the_rows_of_a_chunk(num_rows, num_logits, rows):
    assert rows_of_chunk(num_rows, num_logits, 64, 2, True) == rows


@pytest.mark.parametrize(
    ("num_rows", "in_features", "chunk_rows", "rows"),
    [(512, 2048, 256, 512), (512, 2048, 512, 0), (1920, 2048, 240, 1920), (1921, 2048, 240, 0)],
)
def test_the_gradient_lends_its_memory_to_all_rows_or_none(num_rows, in_features, chunk_rows, rows):
    assert rows_in_gradient(num_rows, in_features, chunk_rows, 2) == rows


@pytest.mark.parametrize(
    ("num_rows", "lends", "weight_dtype"),
    [(30, True, torch.bfloat16), (70, True, torch.float32), (17, False, torch.bfloat16)],
)
def test_the_types_of_the_sums(num_rows, lends, weight_dtype, monkeypatch):
    monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: 17)
    input, weight, bias = (leaf.detach() for leaf in layer(num_rows, 64, 40, torch.bfloat16))
    sums = LinearGradients(LinearChunks(input, weight, bias, (40,), None, None), (True, True, True), lends=lends)
    assert [total.dtype for total in sums.total()] == [torch.bfloat16, weight_dtype, torch.float32]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("with_bias", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_step_takes_no_memory_beyond_the_gradients(with_bias, reduction):
    """No sum in float32, and all logits in the memory of the weight's gradient, once there is one."""
    from benchmarks.cpu_device import CpuDevice

    leaves = [leaf.bfloat16() for leaf in (torch.randn(600, 720), torch.randn(100_000, 720), torch.randn(100_000))]
    leaves = [leaf.requires_grad_() for leaf in leaves[: 3 if with_bias else 2]]
    target = torch.randint(100_000, (600,))

    def step():
        loss = linear_cross_entropy(
            *leaves[:2], target, linear_bias=leaves[2] if with_bias else None, reduction=reduction
        )
        torch.autograd.grad(loss.sum(), leaves)

    peak = CpuDevice().peak_bytes(step)
    assert peak is not None
    assert peak - sum(leaf.nbytes for leaf in leaves) <= 2 * linear_products._COPIED_BYTES < 600 * 100_000 * 2
