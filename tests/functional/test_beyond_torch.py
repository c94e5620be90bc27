"""Cross-entropy with terms of a row and weights of tokens, and its gradients, against float64.

The reference is what people write around torch's function. Each layout has kernels of its own: few classes, rows in
batches, long rows, rows longer than a block of the first sums, a strided class axis with one chunk of classes and more.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from losses import REDUCTIONS
from parity import assert_not_less_exact
from torch.autograd import gradcheck, gradgradcheck

import fused_losses
from fused_losses.functional import cross_entropy, linear_cross_entropy

SHAPES = [(13, 5), (9, 64), (7, 65), (20, 300), (5, 2500), (3, 21, 7, 3), (2, 130, 40), (6,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
IGNORED = -100

TERMS = {
    "scale": {"logit_scale": 0.6},
    "negative scale": {"logit_scale": -1.3},
    "softcap": {"softcap": 4.0},
    "scaled softcap": {"logit_scale": -0.7, "softcap": 9.0},
    "z-loss": {"lse_square_scale": 1e-2},
    "focal": {"focal_gamma": 2.0},
    "focal below one": {"focal_gamma": 0.5},
    "all": {"logit_scale": 1.4, "softcap": 6.0, "lse_square_scale": 3e-2, "focal_gamma": 1.5},
}
ALL_INDEX = TERMS["all"]
ALL_DENSE = {"logit_scale": 1.4, "softcap": 6.0, "lse_square_scale": 3e-2}


def reference(
    logits,
    target,
    weight=None,
    *,
    reduction="mean",
    label_smoothing=0.0,
    logit_scale=1.0,
    softcap=None,
    lse_square_scale=0.0,
    focal_gamma=0.0,
    token_weight=None,
):
    dim = 1 if logits.dim() > 1 else 0
    x = logits * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    by_index = not target.is_floating_point()
    losses = F.cross_entropy(x, target, weight, reduction="none", label_smoothing=label_smoothing)
    if focal_gamma:
        losses = losses * (-torch.expm1(-F.cross_entropy(x, target, reduction="none"))) ** focal_gamma
    counts = target != IGNORED if by_index else torch.ones_like(losses, dtype=torch.bool)
    losses = losses + torch.where(counts, lse_square_scale * x.logsumexp(dim) ** 2, 0)
    if token_weight is not None:
        losses = losses * token_weight
    if reduction != "mean":
        return losses if reduction == "none" else losses.sum()
    if not by_index:
        return losses.sum() / losses.numel()
    weights = counts if weight is None else torch.where(counts, weight[target.clamp(min=0)], 0)
    return losses.sum() / weights.sum()


def problem(shape, dtype=torch.float32, probability=False, spread=3.0, device="cpu"):
    num_classes = shape[1] if len(shape) > 1 else shape[0]
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    logits = (torch.randn(shape) * spread).to(device, dtype)
    if probability:
        return logits, torch.softmax(torch.randn(shape), int(len(shape) > 1)).to(device, dtype)
    target = torch.randint(num_classes, positions)
    if target.numel() > 1:
        target.view(-1)[1] = IGNORED
    return logits, target.to(device)


def loss_and_gradient(function, logits, target, weight, grad_output, options):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, target, weight, **options)
    loss.backward(grad_output.to(loss.dtype).view_as(loss))
    return loss.detach(), leaf.grad


def check(logits, target, weight=None, **options):
    """Neither loss nor gradient less exact than the composition in the type of computation."""
    computation = torch.float64 if logits.dtype == torch.float64 else torch.float32
    unreduced = options.get("reduction") == "none"
    positions = logits.select(1 if logits.dim() > 1 else 0, 0).shape
    grad_output = torch.randn(positions if unreduced else ()).to(logits)

    def composed(dtype):
        tensors = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in (target, weight)]
        more = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        return loss_and_gradient(reference, logits.to(dtype), *tensors, grad_output, more)

    loss, gradient = loss_and_gradient(cross_entropy, logits, target, weight, grad_output, options)
    assert loss.dtype == gradient.dtype == logits.dtype
    torchs = [result.to(logits.dtype) for result in composed(computation)]
    summed = None  # what is summed, where weights of both signs cancel in the result
    if "token_weight" in options:
        doubles = [t.double() if t is not None and t.is_floating_point() else t for t in (logits, target, weight)]
        magnitudes = {**options, "token_weight": options["token_weight"].double().abs()}
        summed = reference(*doubles, **magnitudes).abs().amax()
    for what, ours, theirs, exact in zip(
        ("loss", "gradient"), (loss, gradient), torchs, composed(torch.float64), strict=True
    ):
        if logits.dtype == torch.float64:
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)
        else:
            terms = summed if what == "loss" else None
            assert_not_less_exact(ours, theirs, exact, terms, what)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_terms_of_index_targets(device, dtype, shape, terms):
    logits, target = problem(shape, dtype, device=device)
    for reduction in ("mean", "sum", "none"):
        check(logits, target, reduction=reduction, **terms)


@pytest.mark.parametrize("inner", [(), (3,)], ids=["rows", "strided"])
@pytest.mark.parametrize("num_classes", [5, 70, 1200])
def test_an_infinite_logit_of_an_ignored_row_under_a_negative_scale(num_classes, inner, device):
    """Which of the two infinities is the largest of its row, and makes its gradient NaN, is the scale's business."""
    target = torch.zeros(4, *inner, dtype=torch.int64, device=device)
    target[2] = IGNORED
    for infinity in (float("inf"), -float("inf")):
        logits = torch.randn(4, num_classes, *inner).to(device)
        logits[2, 1] = infinity
        logits.requires_grad_()
        for reduction in ("mean", "none"):
            loss = cross_entropy(logits, target, logit_scale=-0.5, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            loss = F.cross_entropy(-0.5 * logits, target, reduction=reduction)
            (expected,) = torch.autograd.grad(loss.sum(), logits)
            torch.testing.assert_close(gradient, expected, equal_nan=True)


@pytest.mark.parametrize("num_classes", [5, 70, 1200])
def test_infinite_logits_are_finite_under_a_softcap(device, num_classes):
    """Also in an ignored row, whose gradient is 0 times the softmax; without a softcap that is NaN, as torch's."""
    logits = torch.randn(6, num_classes).to(device)
    logits[1, 2] = float("inf")
    logits[2, 1:3] = -float("inf")
    logits[3] = -float("inf")
    target = torch.randint(num_classes, (6,)).to(device)
    for ignored in ((), (1, 2, 3)):
        target[list(ignored)] = IGNORED
        check(logits, target, softcap=4.0)
        leaf = logits.clone().requires_grad_()
        cross_entropy(leaf, target, softcap=4.0).backward()
        assert leaf.grad.isfinite().all() and not leaf.grad[list(ignored)].any()
    leaf = logits.clone().requires_grad_()
    cross_entropy(leaf, target).backward()
    assert leaf.grad[[1, 3]].isnan().all() and leaf.grad[[0, 2, 4, 5]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [5, 70, 1200, 5000])
def test_a_logit_beyond_the_softcap_changes_no_bit_of_the_others(device, num_classes, dtype):
    """The tangents of small logits are computed in another way where there are large ones near them."""
    small = (torch.randn(7, num_classes) * 4 + 15).to(device, dtype)
    small[:, 1] = -36  # the exponential of either is too small to show in the sum
    large = small.clone()
    large[:, 1] = -1e4
    target = torch.tensor([0] * 6 + [num_classes - 1], device=device)
    found = []
    for logits in (small, large):
        leaf = logits.clone().requires_grad_()
        losses = cross_entropy(leaf, target, softcap=30.0, reduction="none")
        found.append((losses, *torch.autograd.grad(losses.sum(), leaf)))
    (losses, gradient), (expected_losses, expected_gradient) = found
    others = [c for c in range(num_classes) if c != 1]
    assert torch.equal(losses, expected_losses)
    assert torch.equal(gradient[:, others], expected_gradient[:, others])


DENSE = [name for name in TERMS if "focal" not in name and name != "all"]


@pytest.mark.parametrize("terms", [TERMS[name] for name in DENSE] + [ALL_DENSE], ids=[*DENSE, "all"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_terms_of_dense_targets(device, dtype, shape, terms):
    num_classes = shape[1] if len(shape) > 1 else shape[0]
    weight = torch.linspace(0.5, 2, num_classes).to(device, dtype)
    for probability, weighted in itertools.product((False, True), repeat=2):
        logits, target = problem(shape, dtype, probability, device=device)
        check(logits, target, weight if weighted else None, label_smoothing=0.1, **terms)


@pytest.mark.parametrize("probability", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(13, 5), (20, 300), (5, 2500), (3, 21, 7, 3)], ids=str)
def test_token_weights(device, shape, probability):
    logits, target = problem(shape, probability=probability, device=device)
    token_weight = torch.randn(logits.select(1, 0).shape).to(device)
    token_weight.view(-1)[2] = 0
    for reduction, terms in itertools.product(("mean", "sum", "none"), ({}, ALL_DENSE)):
        check(logits, target, reduction=reduction, token_weight=token_weight, **terms)


@pytest.mark.parametrize("function", [cross_entropy, linear_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_type_of_token_weights_is_not_the_losses(function, dtype):
    arguments = (torch.randn(4, 5), torch.randn(5, 5)) if function is linear_cross_entropy else (torch.randn(4, 5),)
    arguments, target = [tensor.bfloat16() for tensor in arguments], torch.arange(4)
    plain = torch.ones(4)
    for reduction in REDUCTIONS:
        for labels in (target, torch.rand(4, 5).softmax(1)):
            for enabled in (False, True):
                with torch.autocast("cpu", enabled=enabled):
                    weights = (None, plain, plain.to(dtype))
                    losses = [function(*arguments, labels, reduction=reduction, token_weight=w) for w in weights]
                assert len({loss.dtype for loss in losses}) == 1
    with pytest.raises(TypeError, match="token_weight must be real"):
        function(*arguments, target, token_weight=torch.ones(4, dtype=torch.complex64))
    with pytest.raises(TypeError, match="token_weight must be a tensor"):
        function(*arguments, target, token_weight=[1.0] * 4)


def test_token_weights_get_their_gradient():
    logits, target = problem((13, 50))
    token_weight = torch.randn(13)
    token_weight[3] = 0
    results = []
    for function in (cross_entropy, reference):
        leaf = token_weight.clone().requires_grad_()
        function(logits, target, token_weight=leaf, lse_square_scale=1e-2).backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)
    assert results[0][3] != 0


def test_nothing_of_a_token_without_weight_is_looked_at():
    logits, target = problem((13, 50))
    logits[4] = float("nan")
    token_weight = torch.ones(13)
    token_weight[4] = 0
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy(leaf, target, token_weight=token_weight)
    kept = [i for i in range(13) if i != 4]
    # The mean's denominator counts it.
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], target[kept], reduction="sum") / 12)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("shape", [(4, 5), (2, 66), (2, 3, 2)], ids=str)
def test_first_and_second_derivatives(shape, terms):
    logits, target = problem(shape, torch.float64)
    logits.requires_grad_()
    for reduction in ("mean", "none"):
        assert gradcheck(lambda x: cross_entropy(x, target, reduction=reduction, **terms), logits)  # noqa: B023
        assert gradgradcheck(lambda x: cross_entropy(x, target, reduction=reduction, **terms), logits)  # noqa: B023


@pytest.mark.parametrize("shape", [(13, 5), (9, 300), (5, 2500), (3, 21, 7, 3), (2, 130, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_every_way_to_a_gradient_has_the_same_bits(device, shape, dtype, terms):
    """Made in the forward for this grad_output, made by the backward, and unreduced with an expanded grad_output."""
    logits, target = problem(shape, dtype, device=device)
    gradients = []
    for reduction, times in (("sum", 1), ("sum", 2), ("none", 1)):
        for _ in range(times):
            leaf = logits.clone().requires_grad_()
            loss = cross_entropy(leaf, target, reduction=reduction, **terms)
            loss.backward(torch.full_like(loss, 0.5))
            gradients.append(leaf.grad)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])


@pytest.mark.parametrize("terms", [TERMS["focal"], ALL_INDEX], ids=["focal", "all"])
def test_focal_loss_of_confident_rows(device, terms):
    """Where nothing is left of 1 - p in float32."""
    for margin in (0.0, 15.0, 25.0, 60.0):
        logits = torch.zeros(6, 40, device=device)
        logits[:, 7] = margin
        target = torch.full((6,), 7, device=device)
        for reduction in ("sum", "none"):
            check(logits, target, reduction=reduction, **terms)


@pytest.mark.parametrize("shape", [(6, 30), (6, 300), (6, 3000), (1, 30, 6)], ids=str)
def test_masked_logits(device, shape):
    logits, target = problem(shape, device=device)
    logits[:, ::3] = float("-inf")
    target.view(-1)[:] = torch.tensor([1, 2, 4, 5, 7, 8])
    for terms in ({"logit_scale": 0.5}, {"lse_square_scale": 1e-2}, {"focal_gamma": 2.0}, {"softcap": 5.0}):
        check(logits, target, **terms)


@pytest.mark.parametrize("scales", [{"logit_scale": 1e-42}, {"logit_scale": -1e-42}], ids=str)
def test_scales_that_float32_has_no_normal_number_for(device, scales):
    logits, target = problem((20, 300), device=device)
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy(leaf, target, **scales)
    loss.backward()
    torch.testing.assert_close(loss.detach(), reference(logits.double(), target, **scales).float())
    assert leaf.grad.isfinite().all()
    statistics = fused_losses.functional.token_statistics(logits, target, **scales)
    assert statistics.log_prob.isfinite().all()


def test_no_term_is_torchs_loss_to_the_bit(device):
    logits, target = problem((20, 300), device=device)
    assert torch.equal(cross_entropy(logits, target), cross_entropy(logits, target, logit_scale=1, lse_square_scale=0))


def test_compiled_and_batched():
    logits, target = problem((20, 300))
    expected = cross_entropy(logits, target, **ALL_INDEX)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(logits):
        return cross_entropy(logits, target, **ALL_INDEX)

    leaf = logits.clone().requires_grad_()
    loss = compiled(leaf)
    loss.backward()
    assert torch.equal(loss, expected)
    _, gradient = loss_and_gradient(cross_entropy, logits, target, None, torch.ones(()), ALL_INDEX)
    assert torch.equal(leaf.grad, gradient)

    stack = torch.stack([logits, 2 * logits])
    by_one = torch.stack([torch.func.grad(lambda x: cross_entropy(x, target, **ALL_INDEX))(x) for x in stack])
    batched = torch.func.vmap(torch.func.grad(lambda x: cross_entropy(x, target, **ALL_INDEX)))(stack)
    torch.testing.assert_close(batched, by_one)
    _, tangent = torch.func.jvp(lambda x: cross_entropy(x, target, **ALL_INDEX), (logits,), (logits,))
    torch.testing.assert_close(tangent, (gradient * logits).sum())


def test_the_kernels_compute_it(device):
    logits, target = problem((20, 300), device=device)
    fused_losses.routes(reset=True)
    cross_entropy(logits, target, **ALL_INDEX, token_weight=torch.ones(20, device=device))
    assert fused_losses.routes()["cross_entropy"] == {"kernel": 1}


def test_under_the_patch_and_in_a_module():
    logits, target = problem((20, 300))
    token_weight = torch.rand(20)
    expected = cross_entropy(logits, target, **ALL_INDEX, token_weight=token_weight)
    with fused_losses.patched():
        assert torch.equal(F.cross_entropy(logits, target, **ALL_INDEX, token_weight=token_weight), expected)
    module = fused_losses.CrossEntropyLoss(**ALL_INDEX)
    assert torch.equal(module(logits, target, token_weight=token_weight), expected)
    assert fused_losses.explain(module, logits, target).startswith("kernel")


def test_what_overrides_torchs_functions_meets_ours():
    class Recorder(torch.overrides.TorchFunctionMode):
        functions = ()

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.functions += (function,)
            return function(*args, **(kwargs or {}))

    logits, target = problem((20, 300))
    expected = cross_entropy(logits, target, softcap=3.0)
    with Recorder() as recorder:
        loss = cross_entropy(logits, target, softcap=3.0)
    assert torch.equal(loss, expected)
    assert recorder.functions == (cross_entropy,)
    traced = torch.fx.symbolic_trace(fused_losses.CrossEntropyLoss(softcap=3.0))
    assert torch.equal(traced(logits, target), expected)


def test_a_scripted_module_refuses_what_torchscript_has_not():
    logits, target = problem((20, 300))
    scripted = torch.jit.script(fused_losses.CrossEntropyLoss(softcap=3.0))
    with pytest.raises(Exception, match="TorchScript"):
        scripted(logits, target)


def test_what_changes_from_call_to_call_in_a_graph():
    logits, target = problem((20, 300))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(logits, scale, z):
        return cross_entropy(logits, target, logit_scale=scale, lse_square_scale=z, softcap=5.0)

    for scale, z in ((2.0, 1e-3), (3.0, 2e-3), (4.0, 3e-3)):
        expected = cross_entropy(logits, target, logit_scale=scale, lse_square_scale=z, softcap=5.0)
        torch.testing.assert_close(compiled(logits, scale, z), expected)


def test_what_is_no_loss_in_torch_is_none_here():
    logits, target = problem((20, 300))
    token_weight = torch.zeros(20)
    with pytest.raises(NotImplementedError):
        cross_entropy(logits.long(), target, softcap=3.0)
    with pytest.raises(RuntimeError):
        cross_entropy(logits, target.short(), token_weight=token_weight)
    with pytest.raises(TypeError):
        cross_entropy(logits, target, token_weight=0.5)
    target[3] = -7
    with pytest.raises(IndexError):
        cross_entropy(logits, target, torch.rand(300), token_weight=token_weight)


def test_weights_of_tokens_do_not_wrap_uint8_indices_around():
    logits, weights = torch.randn(3, 300), torch.tensor([2.0, 0.0, 1.0])
    target = torch.tensor([156, 44, 3])  # -100 and 300 modulo 256
    ours = cross_entropy(logits, target.to(torch.uint8), token_weight=weights)
    torch.testing.assert_close(ours, reference(logits, target, token_weight=weights))
