"""Log-probability, log-sum-exp, entropy and argmax of rows of logits, and their gradients, against float64."""

import itertools

import pytest
import torch
from parity import assert_not_less_exact
from torch.overrides import TorchFunctionMode

import fused_losses
from fused_losses.functional import TokenStatistics, linear_token_statistics, token_statistics

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TRANSFORMS = [{}, {"logit_scale": 0.7}, {"softcap": 5.0}, {"logit_scale": -1.3, "softcap": 30.0}, {"logit_scale": -2.0}]
NUM_CLASSES = [1, 2, 7, 16, 33, 1000, 1024, 1025, 5003]
IGNORED = -100


def statistics_by_torch(logits, target, logit_scale=1.0, softcap=None, dtype=torch.float64):
    """The eager composition that libraries of language models write."""
    x = logits.to(dtype) * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    log_p = x.log_softmax(-1)
    counts = target != IGNORED
    log_prob = log_p.gather(-1, target.long().masked_fill(~counts, 0).unsqueeze(-1)).squeeze(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(p == 0, 0)).sum(-1)
    return TokenStatistics(torch.where(counts, log_prob, 0), x.logsumexp(-1), entropy, x.argmax(-1))


def problem(shape, dtype=torch.float32, spread=3.0, device="cpu"):
    logits = (torch.randn(shape) * spread).to(device, dtype)
    target = torch.randint(shape[-1], shape[:-1], device=device)
    if target.dim() and target.numel() > 2:
        target.view(-1)[1] = IGNORED
    return logits, target


def with_gradients(function, logits, target, grads, **options):
    leaf = logits.detach().clone().requires_grad_()
    results = function(leaf, target, **options)
    used = [(r, g.to(r.dtype)) for r, g in zip(results, grads, strict=False) if g is not None]
    (gradient,) = torch.autograd.grad([r for r, _ in used], leaf, [g for _, g in used])
    return results, gradient


def check(logits, target, grads=None, **options):
    """No result and no gradient less exact than the eager composition in the type of computation."""
    computation = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if grads is None:
        grads = [torch.randn(target.shape, device=target.device) for _ in range(3)]
    eager = dict(options, dtype=computation)
    ours, gradient = with_gradients(token_statistics, logits, target, grads, **options)
    torchs, torchs_gradient = with_gradients(statistics_by_torch, logits, target, grads, **eager)
    reference, reference_gradient = with_gradients(statistics_by_torch, logits.double(), target, grads, **options)
    for name in ("log_prob", "log_sum_exp", "entropy"):
        result = getattr(ours, name)
        assert result.dtype == computation and result.shape == target.shape
        assert_not_less_exact(
            result.detach(), getattr(torchs, name).detach(), getattr(reference, name).detach(), what=name
        )
    assert gradient.dtype == logits.dtype
    assert_not_less_exact(gradient, torchs_gradient, reference_gradient, what="gradient")
    return ours, gradient


@pytest.mark.parametrize("options", TRANSFORMS, ids=str)
@pytest.mark.parametrize("num_classes", NUM_CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_and_gradients(device, dtype, num_classes, options):
    logits, target = problem((13, num_classes), dtype, device=device)
    ours, _ = check(logits, target, **options)
    sign = -1 if options.get("logit_scale", 1) < 0 else 1
    assert torch.equal(ours.argmax, (logits * sign).argmax(-1))
    assert ours.log_prob[1] == 0


@pytest.mark.parametrize("used", [u for u in itertools.product([False, True], repeat=3) if any(u)], ids=str)
def test_gradients_of_some_results_alone(device, used):
    logits, target = problem((13, 1500), device=device)
    check(logits, target, [torch.randn(13, device=device) if uses else None for uses in used])


@pytest.mark.parametrize("capability", fused_losses._C.available_cpu_capabilities())
def test_every_instruction_set(capability):
    before = fused_losses._C.cpu_capability()
    fused_losses._C.set_cpu_capability(capability)
    try:
        for dtype, options, num_classes in itertools.product(DTYPES, TRANSFORMS, [6, 1100]):
            check(*problem((21, num_classes), dtype), **options)
    finally:
        fused_losses._C.set_cpu_capability(before)


@pytest.mark.parametrize("capability", fused_losses._C.available_cpu_capabilities())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [1, 2, 5, 16, 40, 1024])
def test_rows_swept_together_do_not_see_each_other(capability, dtype, num_classes):
    """Rows of every kind side by side have the bits of each alone, however many share a sweep."""
    logits, target = problem((37, num_classes), dtype)
    logits[3, 0], logits[7], logits[9], logits[12, -1] = float("nan"), -float("inf"), float("inf"), float("inf")
    logits[14, -1], logits[18], logits[36] = -float("inf"), 0, float("nan")
    logits[20:30] *= 30  # confident, where the target is the largest
    target[20:25] = logits[20:25].float().argmax(-1)
    before = fused_losses._C.cpu_capability()
    fused_losses._C.set_cpu_capability(capability)
    try:
        together = token_statistics(logits, target)
        for first, count in [*((i, 1) for i in range(37)), (2, 17), (5, 32)]:
            rows = slice(first, first + count)
            for all_rows, some_rows in zip(together, token_statistics(logits[rows], target[rows]), strict=True):
                torch.testing.assert_close(all_rows[rows], some_rows, rtol=0, atol=0, equal_nan=True)
    finally:
        fused_losses._C.set_cpu_capability(before)
    assert torch.equal(together.argmax, logits.argmax(-1))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 2, 40), (2, 3, 2, 2, 9)], ids=str)
def test_shapes(device, shape):
    check(*problem(shape, device=device))


def test_strided_rows_are_read_where_they_are(device):
    whole, target = problem((4, 9, 700), device=device)
    for logits, aim in [
        (whole[:, :-1], target[:, 1:]),
        (whole.transpose(0, 1), target.transpose(0, 1)),
        (whole[..., ::2], target.clamp(max=349)),
        (whole[..., 100:], target.clamp(max=599)),
        (whole[:1].expand(4, 9, 700), target),
    ]:
        check(logits, aim)


@pytest.mark.parametrize("type", [torch.uint8, torch.int32])
def test_other_types_of_indices(device, type):
    logits, target = problem((13, 100), device=device)
    target = target.clamp(min=0)
    expected = token_statistics(logits, target)
    for ours, same in zip(token_statistics(logits, target.to(type)), expected, strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("type, ignore_index", [(torch.uint8, -100), (torch.int32, -(2**63))], ids=str)
def test_a_narrow_type_of_indices_does_not_wrap_ignore_index_around(device, type, ignore_index):
    """On the kernel, and by torch's operators, which forward-mode derivatives take."""
    logits, _ = problem((2, 200), device=device)
    target = torch.tensor([(ignore_index + 2**32) % 256, 3], device=device)
    expected = torch.log_softmax(logits, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def log_prob(logits):
        return token_statistics(logits, target.to(type), ignore_index=ignore_index).log_prob

    torch.testing.assert_close(log_prob(logits), expected)
    torch.testing.assert_close(torch.func.jvp(log_prob, (logits,), (logits,))[0], expected)


@pytest.mark.parametrize("bad", [-1, 200])
@pytest.mark.parametrize("type", [torch.int64, torch.int32, torch.int16], ids=str)
def test_an_index_out_of_bounds_by_torchs_operators(type, bad):
    logits, target = torch.randn(2, 200), torch.tensor([3, bad]).to(type)
    with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
        torch.func.jvp(lambda logits: token_statistics(logits, target), (logits,), (logits,))


@pytest.mark.parametrize("masked", [-100.0, -1e4, -1e30, float("-inf")])
@pytest.mark.parametrize("options", TRANSFORMS[:3], ids=str)
def test_masked_vocabulary(device, masked, options):
    """No NaN of 0 times -inf, in blocks that are masked throughout too."""
    logits, target = problem((13, 3000), device=device)
    logits[:, :1100] = masked
    logits[:6, 2000:] = masked
    target = target.clamp(1100, 1999)
    ours, gradient = check(logits, target, **options)
    assert all(result.isfinite().all() for result in ours)
    assert gradient.isfinite().all()


def test_a_masked_target(device):
    logits, _ = problem((6, 1100), device=device)
    target = torch.arange(6, device=device)
    logits[target, target] = float("-inf")
    ours = token_statistics(logits, target)
    assert (ours.log_prob == float("-inf")).all()
    assert ours.entropy.isfinite().all() and ours.log_sum_exp.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 60, 1200])
@pytest.mark.parametrize("margin", [5.0, 17.0, 30.0, 80.0, 200.0])
def test_confident_rows(device, margin, num_classes):
    """log p and 1 - p of a target that is the largest by far are exact, not 0: against float64, to a few roundings."""
    logits, target = problem((9, num_classes), spread=1.0, device=device)
    target = target.clamp(min=0)
    logits[torch.arange(9, device=device), target] = margin + 5
    leaf = logits.clone().requires_grad_()
    ours = token_statistics(leaf, target)
    (gradient,) = torch.autograd.grad(ours.log_prob.sum(), leaf)
    exact = logits.double()
    others = (exact.scatter(1, target.unsqueeze(1), -float("inf")) - exact.amax(1, keepdim=True)).exp().sum(1)
    float32 = torch.finfo(torch.float32)
    roundings = {"rtol": 64 * float32.eps, "atol": logits.size(1) * float32.tiny}  # subnormal exponentials are 0
    torch.testing.assert_close(ours.log_prob.double(), -torch.log1p(others), **roundings)
    at_target = gradient.gather(1, target.unsqueeze(1)).squeeze(1).double()
    torch.testing.assert_close(at_target, others / (1 + others), **roundings)


def test_special_values(device):
    inf, nan = float("inf"), float("nan")
    rows = [[0.0, inf, 1, inf], [nan, 2, nan, inf], [-inf, -inf, -inf, -inf], [1, nan, 3, 4]]
    logits = torch.tensor(rows, device=device)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    ours, torchs = token_statistics(logits, target), statistics_by_torch(logits, target, dtype=torch.float32)
    torch.testing.assert_close(ours.log_sum_exp, torchs.log_sum_exp, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(ours.argmax, logits.argmax(-1))
    assert ours.log_prob[1:].isnan().all() and ours.entropy.isnan().all()


@pytest.mark.parametrize("options", TRANSFORMS, ids=str)
@pytest.mark.parametrize("num_classes", [3, 40, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_subnormal_logit_may_be_the_largest(device, dtype, num_classes, options):
    """The kernels flush what they compute, and must not compute what they compare."""
    smallest = torch.finfo(dtype).tiny
    x = -1 - torch.rand(4, num_classes, dtype=torch.float64)
    x[0, 1], x[1, -1], x[2, :2], x[3, num_classes // 2] = smallest / 4, -smallest / 8, smallest / 2, smallest / 2
    x[2, 0] = 0
    logits = (-x if options.get("logit_scale", 1) < 0 else x).to(device, dtype)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    assert token_statistics(logits, target, **options).argmax.tolist() == [1, num_classes - 1, 1, num_classes // 2]


def test_ties_are_the_first(device):
    logits = torch.zeros(3, 2500, device=device)
    logits[1, [7, 1500, 2400]] = 1
    logits[2, [1030, 2100]] = 1
    assert token_statistics(logits, torch.zeros_like(logits[:, 0]).long()).argmax.tolist() == [0, 7, 1030]


def test_rows_without_a_gradient_are_zero_whatever_is_in_them(device):
    logits, target = problem((4, 50), device=device)
    logits[2] = float("-inf")
    target[2] = IGNORED
    leaf = logits.requires_grad_()
    token_statistics(leaf, target).log_prob.sum().backward()
    assert (leaf.grad[2] == 0).all() and leaf.grad.isfinite().all()


def test_bits_do_not_depend_on_threads():
    logits, target = problem((300, 1300))
    threads = torch.get_num_threads()
    outcomes = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outcomes.append(with_gradients(token_statistics, logits, target, [torch.ones(300)] * 3))
    finally:
        torch.set_num_threads(threads)
    for results, gradient in outcomes[1:]:
        assert torch.equal(gradient, outcomes[0][1])
        assert all(torch.equal(a, b) for a, b in zip(results, outcomes[0][0], strict=True))


def float64_results(target, **options):
    return lambda x: token_statistics(x, target, **options)[:3]


@pytest.mark.parametrize("options", TRANSFORMS, ids=str)
def test_first_and_second_derivatives(device, options):
    logits, target = problem((3, 5), torch.float64, device=device)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(float64_results(target, **options), (logits,))
    assert torch.autograd.gradgradcheck(float64_results(target, **options), (logits,))


def test_transforms(device):
    logits, target = problem((4, 3, 50), torch.float64, device=device)
    expected = token_statistics(logits, target)
    for in_dims in [(0, 0), (1, 1)]:
        ours = torch.vmap(token_statistics, in_dims)(logits, target)
        for result, same in zip(ours, expected, strict=True):
            torch.testing.assert_close(result.movedim(0, in_dims[0]), same)

    def total(x, t):
        s = token_statistics(x, t)
        return (s.log_prob * 2 + s.log_sum_exp.square() + s.entropy).sum()

    def torchs_total(x, t):
        s = statistics_by_torch(x, t)
        return (s.log_prob * 2 + s.log_sum_exp.square() + s.entropy).sum()

    per_sample = torch.vmap(torch.func.grad(total))(logits, target)
    torch.testing.assert_close(per_sample, torch.vmap(torch.func.grad(torchs_total))(logits, target))
    torch.testing.assert_close(
        torch.func.jvp(lambda x: total(x, target), (logits,), (logits,))[1],
        torch.func.jvp(lambda x: torchs_total(x, target), (logits,), (logits,))[1],
    )
    torch.testing.assert_close(
        torch.func.hessian(lambda x: total(x, target[0]))(logits[0]),
        torch.func.hessian(lambda x: torchs_total(x, target[0]))(logits[0]),
    )


def test_a_compiled_graph_holds_the_operator():
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def loss(x, t):
        s = token_statistics(x, t, softcap=4.0)
        return (s.log_prob - 0.01 * s.entropy + 1e-4 * s.log_sum_exp.square()).sum()

    logits, target = problem((6, 40))
    leaf, compiled_leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(leaf, target).backward()
    torch.compile(loss, backend=backend, fullgraph=True)(compiled_leaf, target).backward()
    assert any(str(node.target) == "fused_losses.token_statistics.default" for g in graphs for node in g.graph.nodes)
    assert torch.equal(leaf.grad, compiled_leaf.grad)


def test_operators_are_described_to_torch():
    logits, target = problem((3, 4, 20))
    operators = torch.ops.fused_losses
    everything = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (logits.requires_grad_(), target, 0.5, 3.0, IGNORED)
    torch.library.opcheck(operators.token_statistics.default, arguments, test_utils=everything)
    *_, saved = operators.token_statistics(logits.detach(), *arguments[1:])
    grads = (torch.randn(3, 4), None, torch.randn(3, 4))
    backward = (*grads, logits.detach(), target, saved, 0.5, 3.0, IGNORED)
    torch.library.opcheck(operators.token_statistics_backward.default, backward, test_utils=everything)


def test_errors():
    logits, target = problem((4, 5))
    with pytest.raises(IndexError, match=r"^Target 5 is out of bounds\.$"):
        token_statistics(logits, target.fill_(5))
    with pytest.raises(ValueError, match="Expected target of shape"):
        token_statistics(logits, target[:2])
    with pytest.raises(ValueError, match="class indices"):
        token_statistics(logits, target.float())
    with pytest.raises(ValueError, match="softcap must be positive"):
        token_statistics(logits, target, softcap=-1.0)


def test_empty(device):
    logits, target = problem((0, 5), device=device)
    ours = token_statistics(logits.requires_grad_(), target)
    assert all(result.shape == (0,) for result in ours)


def test_which_way_a_call_goes(device):
    logits, target = problem((4, 5), device=device)
    fused_losses.routes(reset=True)
    token_statistics(logits, target)
    assert fused_losses.routes()["token_statistics"] == {"kernel": 1}


class PassingOn(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("logit_scale", [1.0, -0.7])
def test_the_largest_logit_is_found_where_a_softcap_rounds_several_to_one(device, dtype, logit_scale):
    """On every route: torch's operators, too, ask the logits."""
    logits = (torch.randn(5, 300, device=device) * 200).to(dtype)
    target = torch.zeros(5, dtype=torch.int64, device=device)
    expected = (logits if logit_scale > 0 else -logits).argmax(-1)
    options = dict(softcap=1.0, logit_scale=logit_scale)
    assert torch.equal(token_statistics(logits, target, **options).argmax, expected)
    with PassingOn():
        assert torch.equal(token_statistics(logits, target, **options).argmax, expected)
    head = torch.eye(300, dtype=dtype, device=device)
    assert torch.equal(linear_token_statistics(logits, head, target, **options).argmax, expected)
