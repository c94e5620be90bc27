"""Bugs that other fused losses had, one test each, named after the report: none of them may be found here.

Reports are cited as owner/repository#number on GitHub. Those about GPUs, tensor parallelism and fused linear layers
have no counterpart on the CPU.
"""

import math

import pytest
import torch
from losses import BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, LOSSES, NLL_LOSS, sample, sample_class_probabilities
from parity import check_parity, run
from torch.utils.checkpoint import checkpoint


def test_first_tile_of_minus_infinities():
    """Dao-AILab/flash-attention#1930: an online softmax that starts on a tile of -inf makes the row NaN."""
    logits = torch.randn(2, 70_000)
    logits[:, :65_536] = -torch.inf
    outcome = run(CROSS_ENTROPY.ours, logits, torch.tensor([65_536, 69_999]))
    assert outcome.loss.isfinite()
    assert outcome.gradient.isfinite().all()
    check_parity(CROSS_ENTROPY, logits, torch.tensor([65_536, 69_999]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_target_gradient_of_a_confident_row(dtype):
    """linkedin/Liger-Kernel#1329: p rounded to 16 bits before 1 is subtracted leaves 0 of the target's gradient."""
    logits = torch.zeros(1, 3, dtype=dtype)
    logits[0, 0] = 7.0
    gradient = run(CROSS_ENTROPY.ours, logits, torch.tensor([0])).gradient[0, 0].item()
    true = logits.double().softmax(1)[0, 0].item() - 1
    assert true == pytest.approx(-0.0018, abs=1e-4)
    assert gradient == pytest.approx(true, rel=torch.finfo(dtype).eps)


def test_gradient_output_of_each_row_counts():
    """linkedin/Liger-Kernel#968: with reduction="none" all rows were scaled by grad_output[0]."""
    logits, target = sample(CROSS_ENTROPY, (4, 5))
    grad_output = torch.tensor([1.0, 10.0, 0.0, -2.0])
    scaled = run(CROSS_ENTROPY.ours, logits, target, grad_output, reduction="none").gradient
    unscaled = run(CROSS_ENTROPY.ours, logits, target, torch.ones(4), reduction="none").gradient
    torch.testing.assert_close(
        scaled, grad_output.unsqueeze(1) * unscaled, rtol=2 * torch.finfo(torch.float32).eps, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_scalar_gradient_output_other_than_one(loss):
    """NVIDIA/TransformerEngine#2139: gradients vanished, and tests with grad_output = 1 did not see it."""
    input, target = sample(loss, (6, 5))
    check_parity(loss, input, target, torch.tensor(1024.0))
    check_parity(loss, input, target, torch.tensor(2.0**-30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_never_overwrite_the_logits(dtype):
    """linkedin/Liger-Kernel#1251: a gradient written over the logits corrupts what an earlier layer has saved."""
    features = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    logits = features.exp()  # whose backward needs its own result
    target = torch.randint(5, (6,))
    before = logits.detach().clone()
    CROSS_ENTROPY.ours(logits, target).backward()
    assert torch.equal(logits, before)
    expected = run(CROSS_ENTROPY.ours, before, target).gradient * before
    assert torch.equal(features.grad, expected)


def test_two_losses_and_a_checkpoint_share_the_logits():
    """unslothai/unsloth#5002: the backward destroyed the logits, so a second loss or a checkpoint went wrong."""
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    expected = 2 * run(CROSS_ENTROPY.ours, logits, target).gradient
    leaf = logits.requires_grad_()
    first = CROSS_ENTROPY.ours(leaf, target)
    second = checkpoint(CROSS_ENTROPY.ours, leaf, target, use_reentrant=False)
    first.backward()
    second.backward()
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=0)


def test_retain_graph():
    """Dao-AILab/quack#209: a second backward scaled the gradient that the first had scaled in place."""
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    leaf = logits.requires_grad_()
    loss = CROSS_ENTROPY.ours(leaf, target)
    gradients = [torch.autograd.grad(loss, leaf, torch.tensor(3.0), retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("shape", [(1001, 10), (33, 1000), (3, 10, 40, 41)], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, NLL_LOSS], ids=repr)
def test_losses_and_gradients_of_ignored_rows_are_written(loss, shape):
    """linkedin/Liger-Kernel#1338: ignored rows were left as the allocator gave them; freed NaNs would show it."""
    input, target = sample(loss, shape)
    target[target == 3] = -100
    for _ in range(3):
        poison = [torch.full(shape, torch.nan), torch.full(target.shape, torch.nan)]
        del poison
        losses, gradient = run(loss.ours, input, target, reduction="none")
        ignored = target == -100
        assert (losses[ignored] == 0).all()
        assert (gradient.movedim(1, -1)[ignored] == 0).all()
        assert losses.isfinite().all() and gradient.isfinite().all()


def test_smoothing_ignoring_and_weighting_together():
    """pytorch/pytorch#73205, pytorch/pytorch#69339: each alone was right, together the denominator was not."""
    logits, target = sample(CROSS_ENTROPY, (9, 5), torch.float64)
    target[::3] = -100
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    ours = CROSS_ENTROPY.ours(logits, target, weight=weight, label_smoothing=0.3)
    log_probability = logits.log_softmax(1)
    numerator = denominator = 0.0
    for row, label in zip(log_probability, target.tolist(), strict=True):
        if label != -100:
            numerator -= 0.7 * weight[label] * row[label] + 0.3 / 5 * (weight * row).sum()
            denominator += weight[label]
    torch.testing.assert_close(ours, numerator / denominator)


def test_all_ignored_is_nan_with_a_gradient_of_zero():
    """pytorch/pytorch#70348, mgmalek/efficient_cross_entropy#6: the NaN is meant, and it stays out of the gradient."""
    outcome = run(CROSS_ENTROPY.ours, torch.randn(4, 5), torch.full((4,), -100))
    assert outcome.loss.isnan()
    assert (outcome.gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_mean_over_many_rows(dtype):
    """pytorch/pytorch#61523: a 16-bit sum stops growing at 256 rows (bfloat16) or overflows at 65504 (float16)."""
    logits = torch.zeros(100_000, 8, dtype=dtype)
    mean = CROSS_ENTROPY.ours(logits, torch.zeros(100_000, dtype=torch.int64))
    assert mean.item() == pytest.approx(math.log(8), rel=torch.finfo(dtype).eps / 2)


def test_mean_over_two_to_the_24_rows():
    """pytorch/pytorch#55657: float32 cannot count beyond 2**24 one by one."""
    num_rows = 2**24 + 2**20
    losses = NLL_LOSS.ours(torch.full((num_rows, 1), -1.0), torch.zeros(1, dtype=torch.uint8).expand(num_rows))
    assert losses.item() == 1.0
    total = NLL_LOSS.ours(
        torch.full((num_rows, 1), -1.0), torch.zeros(1, dtype=torch.uint8).expand(num_rows), reduction="sum"
    )
    assert total.item() == num_rows


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, NLL_LOSS], ids=repr)
def test_images_that_are_not_contiguous(loss):
    """pytorch/pytorch#67167, pytorch/pytorch#175084: wrong numbers or an error in the backward of 4-D losses."""
    input, target = sample(loss, (2, 7, 5, 6))
    check_parity(loss, input.transpose(2, 3).contiguous().transpose(2, 3), target)
    check_parity(loss, input[:, :, ::2, 1:], target[:, ::2, 1:])


def test_binary_loss_of_masked_logits():
    """pytorch/pytorch#49844, pytorch/pytorch#135359: a logit of -inf with a label of 0 is right, not NaN."""
    logits, labels = torch.tensor([-torch.inf, 0.0]), torch.tensor([0.0, 1.0])
    outcome = run(BINARY_CROSS_ENTROPY_WITH_LOGITS.ours, logits, labels)
    assert outcome.loss.item() == pytest.approx(math.log(2) / 2)
    assert outcome.gradient.tolist() == [0.0, -0.25]


def test_pos_weight_of_far_negative_logits():
    """pytorch/pytorch#13773: pos_weight at a logit of -120 gave NaN."""
    logits, labels = torch.full((4,), -120.0), torch.tensor([0.0, 1.0, 0.5, 1.0])
    check_parity(BINARY_CROSS_ENTROPY_WITH_LOGITS, logits, labels, pos_weight=torch.tensor([1.0, 2.0, 3.0, 0.0]))


def test_denominators_of_indices_and_of_probabilities_differ():
    """With a weight, indices divide by the sum of the targets' weights, the same labels as probabilities by N."""
    logits, target = sample(CROSS_ENTROPY, (8, 5), torch.float64)
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    by_index = CROSS_ENTROPY.ours(logits, target, weight=weight)
    one_hot = torch.nn.functional.one_hot(target, 5).double()
    by_probability = CROSS_ENTROPY.ours(logits, one_hot, weight=weight)
    torch.testing.assert_close(by_index * weight[target].sum(), by_probability * 8)
    assert by_index != by_probability


def test_sum_over_micro_batches_is_the_sum_over_the_batch():
    """huggingface/transformers#34191: with "sum" divided by the number of tokens, gradient accumulation is exact."""
    logits, target = sample(CROSS_ENTROPY, (12, 5), torch.float64)
    target[[0, 1, 2, 5, 9]] = -100
    in_one = run(CROSS_ENTROPY.ours, logits, target)
    in_parts = [run(CROSS_ENTROPY.ours, logits[i : i + 4], target[i : i + 4], reduction="sum") for i in (0, 4, 8)]
    num_tokens = 7
    torch.testing.assert_close(sum(part.loss for part in in_parts) / num_tokens, in_one.loss)
    torch.testing.assert_close(torch.cat([part.gradient for part in in_parts]) / num_tokens, in_one.gradient)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_probabilities(alpha):
    """pytorch/pytorch#141177: the case of MixUp, a batch of mixed one-hot labels, long rows included."""
    logits, _ = sample(CROSS_ENTROPY, (33, 1000))
    one_hot = torch.nn.functional.one_hot(torch.randint(1000, (33,)), 1000).float()
    share = torch.distributions.Beta(alpha, alpha).sample()
    check_parity(CROSS_ENTROPY, logits, share * one_hot + (1 - share) * one_hot.flip(0), label_smoothing=0.1)


def test_padded_vocabulary():
    """unslothai/unsloth#10616: padding of the vocabulary, masked with -inf or cut off, adds nothing to the softmax."""
    logits, target = sample(CROSS_ENTROPY, (6, 1003))
    padded = torch.cat([logits, torch.full((6, 21), -torch.inf)], dim=1)
    masked, cut = (run(CROSS_ENTROPY.ours, x, target) for x in (padded, padded[:, :1003]))
    exact = run(CROSS_ENTROPY.ours, logits, target)
    torch.testing.assert_close(masked.loss, exact.loss, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    assert (masked.gradient[:, 1003:] == 0).all()
    assert torch.equal(cut.loss, exact.loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sum_beyond_the_range_of_the_dtype_shows_as_in_float32_rounded(dtype):
    """Only the result is rounded: the sum overflows float16 because it is too large, not on the way."""
    logits, target = torch.zeros(40_000, 8, dtype=dtype), torch.zeros(40_000, dtype=torch.int64)
    expected = torch.tensor(40_000 * math.log(8), dtype=torch.float64).to(dtype)
    assert CROSS_ENTROPY.ours(logits, target, reduction="sum") == expected
    assert expected.isinf() == (dtype == torch.float16)


def test_probabilities_of_every_size_of_class_axis_are_read_to_the_end():
    """Tails shorter than a vector, of the probabilities as of the logits."""
    for num_classes in range(1, 70):
        logits = torch.zeros(3, num_classes)
        target = sample_class_probabilities((3, num_classes))
        loss = CROSS_ENTROPY.ours(logits, target)
        assert loss.item() == pytest.approx(math.log(num_classes), rel=1e-6, abs=1e-6)
