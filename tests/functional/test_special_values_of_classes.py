"""cross_entropy and nll_loss at infinities and NaNs, with nothing to average, and at the ends of the number range.

The expected numbers stand here as torch 2.13 gives them on the CPU; each test also asks torch itself.
"""

import math

import pytest
import torch
from losses import CLASS_LOSSES, CROSS_ENTROPY, FLOAT_DTYPES, NLL_LOSS, REDUCTIONS, sample
from parity import check_parity, run

from fused_losses import _ops
from fused_losses.functional import linear_cross_entropy

INF, NAN = torch.inf, torch.nan

# 5 classes: few. 5000: many, longer than a block of 4096, so block and tail can be of different kinds.
CLASS_COUNTS = [5, 5000]


def row_of(num_classes, value, device, **at):
    """A row of one value but for the places named, as in row_of(5, 0.0, device, last=INF)."""
    places = {"first": 0, "target": 1, "last": num_classes - 1}
    row = torch.full((1, num_classes), value, device=device)
    for place, special in at.items():
        row[0, places[place]] = special
    return row


def losses_and_gradients(logits, target_class=1, **options):
    target = torch.full((len(logits),), target_class, device=logits.device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none", **options)
    return run(CROSS_ENTROPY.ours, logits, target, reduction="none", **options)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_all_ignored(loss, dtype, device):
    """The mean of nothing is NaN, yet its gradient is 0."""
    input, target = sample(loss, (4, 5), dtype, device)
    target.fill_(-100)
    for reduction, value in (("mean", NAN), ("sum", 0.0), ("none", 0.0)):
        outcome = run(loss.ours, input, target, reduction=reduction)
        torch.testing.assert_close(outcome.loss, torch.full_like(outcome.loss, value), equal_nan=True, rtol=0, atol=0)
        assert torch.equal(outcome.gradient, torch.zeros_like(input))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_a_single_ignored_row_without_batch_axis(loss, reduction, device):
    check_parity(loss, torch.randn(5, device=device), torch.tensor(-100, device=device), reduction=reduction)


def test_all_ignored_with_smoothing_and_weight(device):
    logits, target = sample(CROSS_ENTROPY, (4, 5), device=device)
    target.fill_(-100)
    options = dict(label_smoothing=0.1, weight=torch.rand(5, device=device))
    for reduction in REDUCTIONS:
        check_parity(CROSS_ENTROPY, logits, target, reduction=reduction, **options)
    assert CROSS_ENTROPY.ours(logits, target, **options).isnan()


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0)], ids=str)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_empty_batch(loss, shape, device):
    input, target = sample(loss, shape, device=device)
    assert run(loss.ours, input, target).loss.isnan()
    assert run(loss.ours, input, target, reduction="sum").loss == 0
    assert run(loss.ours, input, target, reduction="none").loss.shape == target.shape
    for reduction in REDUCTIONS:
        assert run(loss.ours, input, target, reduction=reduction).gradient.shape == shape


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_weights_that_sum_to_zero(loss, device):
    input, target = sample(loss, (4, 5), device=device)
    for reduction in REDUCTIONS:
        ours = run(loss.ours, input, target, weight=torch.zeros(5, device=device), reduction=reduction)
        torchs = run(loss.torchs, input, target, weight=torch.zeros(5, device=device), reduction=reduction)
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)
    assert run(loss.ours, input, target, weight=torch.zeros(5, device=device)).loss.isnan()


def test_weight_of_zero_for_the_targets_of_some_rows(device):
    logits, _ = sample(CROSS_ENTROPY, (4, 5), device=device)
    target = torch.tensor([0, 1, 0, 2], device=device)
    weight = torch.tensor([0.0, 1.0, 2.0, 1.0, 1.0], device=device)
    for options in ({}, {"label_smoothing": 0.1}):
        check_parity(CROSS_ENTROPY, logits, target, weight=weight, **options)


@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_minus_infinity_off_the_target(num_classes, device):
    """A masked class: it takes no part, and gets a gradient of exactly 0."""
    loss, gradient = losses_and_gradients(row_of(num_classes, 0.0, device, last=-INF))
    assert loss.item() == pytest.approx(math.log(num_classes - 1), rel=4 * torch.finfo(torch.float32).eps)
    assert gradient[0, -1] == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_minus_infinity_at_the_target(num_classes, device):
    """The loss is infinite; its gradient is not."""
    loss, gradient = losses_and_gradients(row_of(num_classes, 0.0, device, target=-INF))
    assert loss.item() == INF
    assert gradient.isfinite().all()
    assert gradient[0, 1] == -1


@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_minus_infinity_anywhere_with_label_smoothing(num_classes, device):
    loss, gradient = losses_and_gradients(row_of(num_classes, 0.0, device, last=-INF), label_smoothing=0.1)
    assert loss.item() == INF
    assert gradient.isfinite().all()


@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_a_row_of_minus_infinity_is_nan(num_classes, device):
    loss, gradient = losses_and_gradients(row_of(num_classes, -INF, device))
    assert loss.isnan().all()
    assert gradient.isnan().all()


@pytest.mark.parametrize("place", ["first", "target", "last"])
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_plus_infinity_anywhere_is_nan(num_classes, place, device):
    loss, _ = losses_and_gradients(row_of(num_classes, 0.0, device, **{place: INF}))
    assert loss.isnan().all()


@pytest.mark.parametrize("place", ["first", "target", "last"])
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_nan_anywhere_is_nan(num_classes, place, device):
    loss, gradient = losses_and_gradients(row_of(num_classes, 0.0, device, **{place: NAN}))
    assert loss.isnan().all()
    assert gradient.isnan().all()


@pytest.mark.parametrize("num_masked", [1, 15, 16, 64, 1024, 4095, 4096, 4097, 4999])
def test_leading_minus_infinities_do_not_poison_the_row(num_masked, device):
    """A running maximum that starts at -inf makes (-inf) - (-inf) = NaN in a first block that holds nothing else."""
    logits = torch.randn(3, 5000, device=device)
    logits[:, :num_masked] = -INF
    loss, gradient = losses_and_gradients(logits, target_class=4999)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[:, :num_masked] == 0).all()


def test_leading_minus_infinities_before_strided_classes(device):
    logits = torch.randn(2, 300, 37, device=device)
    logits[:, :256] = -INF
    target = torch.full((2, 37), 299, device=device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none")
    assert run(CROSS_ENTROPY.ours, logits, target, reduction="none").loss.isfinite().all()


def test_one_bad_row_leaves_the_others_alone(device):
    """Rows are computed side by side; a NaN, an infinity or a masked row must stay in its own."""
    logits, target = sample(CROSS_ENTROPY, (67, 10), device=device)
    alone = run(CROSS_ENTROPY.ours, logits, target, reduction="none")
    for row, special in ((5, NAN), (6, INF), (7, -INF), (66, NAN)):
        logits[row] = special
    among_bad = run(CROSS_ENTROPY.ours, logits, target, reduction="none")
    good = torch.ones(67, dtype=torch.bool, device=device)
    good[[5, 6, 7, 66]] = False
    assert torch.equal(among_bad.loss[good], alone.loss[good])
    assert torch.equal(among_bad.gradient[good], alone.gradient[good])
    assert among_bad.loss[~good].isnan().all()


def test_zero_probability_times_minus_infinity_is_nan(device):
    """As in torch: 0 * log(0) is not taken for 0."""
    logits = torch.tensor([[0.0, 1.0, -INF]], device=device)
    target = torch.tensor([[0.5, 0.5, 0.0]], device=device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none")
    assert CROSS_ENTROPY.ours(logits, target).isnan()


@pytest.mark.parametrize("special", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_specials_in_an_ignored_row(num_classes, special, device):
    """The row's loss is 0, and its gradient is 0 * softmax: NaN where the softmax is."""
    logits = torch.randn(4, num_classes, device=device)
    logits[2, 0] = special
    target = torch.tensor([0, 1, -100, 2], device=device)
    for reduction in REDUCTIONS:
        check_parity(CROSS_ENTROPY, logits, target, reduction=reduction)
    outcome = run(CROSS_ENTROPY.ours, logits, target, reduction="none")
    assert outcome.loss[2] == 0
    assert outcome.gradient[2].isnan().all() == (special != -INF)
    assert run(CROSS_ENTROPY.ours, logits, target).loss.isfinite()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_logits_far_apart(dtype, device):
    """exp would overflow without the maximum taken out; what is far below it gets a probability of exactly 0."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 9.9e3], [-1e4, -1e4, -1e4]], device=device, dtype=dtype)
    target = torch.tensor([1, 1, 2], device=device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none")
    check_parity(CROSS_ENTROPY, logits, target, reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize("offset", [1e4, -1e4, 1e7])
def test_a_constant_added_to_all_logits_changes_nothing(offset, device):
    """Small integers stay exact beside the offset, so the results have to be the same to the bit."""
    logits = torch.randint(-8, 8, (20, 33), device=device).float()
    target = torch.randint(33, (20,), device=device)
    plain = run(CROSS_ENTROPY.ours, logits, target, reduction="none")
    moved = run(CROSS_ENTROPY.ours, logits + offset, target, reduction="none")
    assert torch.equal(plain.loss, moved.loss)
    assert torch.equal(plain.gradient, moved.gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_subnormal_logits(dtype, device):
    logits = torch.full((3, 20), torch.finfo(dtype).smallest_normal / 8, device=device, dtype=dtype)
    check_parity(CROSS_ENTROPY, logits, torch.tensor([0, 7, 19], device=device), reduction="none")


@pytest.mark.parametrize("value", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize("place", ["target", "last"])
def test_nll_loss_passes_specials_on_from_the_target_only(value, place, device):
    log_probability = row_of(5, -1.0, device, **{place: value})
    target = torch.tensor([1], device=device)
    check_parity(NLL_LOSS, log_probability, target, reduction="none")
    loss = NLL_LOSS.ours(log_probability, target)
    assert loss.isfinite() == (place == "last")


def same_values(ours, torchs):
    for our_result, torchs_result in zip(ours, torchs, strict=True):
        torch.testing.assert_close(our_result, torchs_result, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("by_probability", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (4, 100), (4, 3000), (4, 5, 3), (2, 100, 3)], ids=str)
def test_an_infinite_weight_of_an_absent_class(shape, by_probability, reduction, device):
    """Smoothing spreads mass to it: every loss is infinite, also where its logit is the largest."""
    logits = torch.randn(shape, device=device)
    logits[0, 0] = 9.0
    weight = torch.ones(shape[1], device=device)
    weight[0] = INF
    target = torch.randint(1, shape[1], shape[:1] + shape[2:], device=device)
    target = torch.rand(shape, device=device).softmax(1) if by_probability else target
    options = dict(weight=weight, label_smoothing=0.1, reduction=reduction)
    ours = run(CROSS_ENTROPY.ours, logits, target, **options)
    same_values(ours, run(CROSS_ENTROPY.torchs, logits, target, **options))
    assert (ours.loss == INF).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("by_probability", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (4, 100), (4, 3000), (4, 5, 3), (2, 100, 3)], ids=str)
def test_an_infinite_weight_beside_a_confident_class(shape, by_probability, reduction, device):
    """The sum of the exponentials is rounded to that of one class, whose logarithm is 0."""
    logits = torch.randn(shape, device=device)
    logits[:, -1] += 40.0
    weight = torch.ones(shape[1], device=device)
    weight[1] = INF
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device=device)
    target = torch.rand(shape, device=device).softmax(1) if by_probability else target
    options = dict(weight=weight, label_smoothing=0.1, reduction=reduction)
    loss = CROSS_ENTROPY.ours(logits, target, **options)
    assert (loss == INF).all()
    torch.testing.assert_close(loss, CROSS_ENTROPY.torchs(logits, target, **options))
    logits[:, 0] = torch.nan
    assert CROSS_ENTROPY.ours(logits, target, **options).isnan().all()


@pytest.mark.parametrize("weights", [[1.0, 1.0, INF], [0.0, 0.0, 1.0]], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_with_weights_of_absent_classes(weights, reduction, device):
    """Infinite ones are nobody's business without smoothing; a mean of no weight is NaN in every derivative."""
    logits, target = torch.randn(4, 3, device=device), torch.tensor([0, 1, -100, 0], device=device)
    weight = torch.tensor(weights, device=device)
    seconds = []
    for function in (CROSS_ENTROPY.ours, CROSS_ENTROPY.torchs):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, target, weight=weight, reduction=reduction).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        seconds.append(torch.autograd.grad(gradient[0, 0], leaf)[0])
    torch.testing.assert_close(*seconds, equal_nan=True)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(4, 5), (4, 100), (4, 3000), (4, 5, 3)], ids=str)
def test_targets_without_weight(shape, label_smoothing, device):
    """Their mean is 0 / 0, although smoothing leaves a loss; what is ignored keeps a gradient of 0."""
    weight = torch.ones(shape[1], device=device)
    weight[2] = 0
    target = torch.full(shape[:1] + shape[2:], 2, device=device)
    target[1] = -100
    operands = (torch.randn(shape, device=device), target)
    ours = run(CROSS_ENTROPY.ours, *operands, weight=weight, label_smoothing=label_smoothing)
    same_values(ours, run(CROSS_ENTROPY.torchs, *operands, weight=weight, label_smoothing=label_smoothing))
    assert ours.loss.isnan() and (ours.gradient[1] == 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("way", ["token weights", "vmap", "linear layer", "scale", "batched gradients"])
def test_targets_without_weight_by_every_way(way, label_smoothing):
    """Where the sum of the losses is divided at once, and smoothing leaves one, it is no infinity either."""
    logits, target, weight = torch.randn(3, 4, 5), torch.full((3, 4), 2), torch.ones(5)
    weight[2] = 0
    options = {"weight": weight, "label_smoothing": label_smoothing}
    ours, leaf = CROSS_ENTROPY.ours, logits.requires_grad_()
    losses = {
        "token weights": lambda x: ours(x[0], target[0], token_weight=torch.ones(4), **options),
        "vmap": lambda x: torch.func.vmap(lambda x, target: ours(x, target, **options))(x, target)[0],
        "linear layer": lambda x: linear_cross_entropy(x[0], torch.eye(5), target[0], **options),
        "scale": lambda x: ours(x[0], target[0], logit_scale=2.0, **options),
        "batched gradients": lambda x: ours(x[0], target[0], **options),
    }
    loss, expected = losses[way](leaf), CROSS_ENTROPY.torchs(leaf[0], target[0], **options)
    assert loss.isnan() and expected.isnan()
    batched = way == "batched gradients"
    grad_output = torch.ones(2) if batched else None
    gradients = (
        torch.autograd.grad(of, leaf, grad_output, is_grads_batched=batched)[0].select(-3, 0) for of in (loss, expected)
    )
    torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_promotion_takes_no_float64_weight(dtype, device):
    """Under autocast torch refuses it for indices and returns float64 for probabilities: neither is the kernels'."""
    logits, target = sample(CROSS_ENTROPY, (4, 5), dtype, device)
    with pytest.raises((ValueError, RuntimeError), match="weight must have the input's type"):
        _ops.cross_entropy_forward(
            logits, target, torch.ones(5, dtype=torch.float64, device=device), 1, -100, 0.1, True
        )
