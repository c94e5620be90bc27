"""What two, three or four processes compute together of a vocabulary that is spread over them, against one and torch.

See several_ranks.py.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from parity import assert_not_less_exact
from several_ranks import case, case_of
from sharded import (
    IGNORED,
    LargeTensors,
    Shards,
    check,
    counted_collectives,
    layouts,
    of_all_ranks,
    outcome,
    raised,
    torchs_loss,
)
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel

import fused_losses
from fused_losses.autograd import linear_chunks, linear_products
from fused_losses.distributed import (
    VocabParallelCrossEntropyLoss,
    VocabParallelLinearCrossEntropyLoss,
    VocabParallelTokenStatistics,
    shard,
    statistics,
    vocab_parallel_cross_entropy,
    vocab_parallel_linear_cross_entropy,
    vocab_parallel_token_statistics,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TRANSFORMS: list[dict[str, Any]] = [{}, {"logit_scale": -1.3}, {"logit_scale": 0.7, "softcap": 5.0}]
REDUCTIONS = ["none", "mean", "sum"]


def problem(shards: Shards, dtype: torch.dtype = torch.float32, num_rows: int = 7) -> tuple[Tensor, Tensor]:
    logits = (torch.randn(num_rows, shards.num_classes) * 3).to(dtype)
    target = torch.randint(shards.num_classes, (num_rows,))
    target[2] = IGNORED
    return logits, target


def check_options(rank: int, dtype: torch.dtype) -> None:
    """Every combination of the options, over the layouts in turn."""
    grid = itertools.product(TRANSFORMS, [0.0, 0.1], [False, True], [False, True], REDUCTIONS)
    for shards, (transform, smoothing, has_weight, has_more, reduction) in zip(itertools.cycle(layouts(rank)), grid):
        logits, target = problem(shards, dtype)
        options: dict[str, Any] = {**transform, "label_smoothing": smoothing, "reduction": reduction}
        if has_weight:
            options["weight"] = torch.rand(shards.num_classes).to(dtype)
        if has_more:
            options |= {"lse_square_scale": 1e-2, "token_weight": torch.randn(target.shape)}
        grad_output = torch.randn(target.shape if reduction == "none" else ())
        check(vocab_parallel_cross_entropy, logits, target, shards, grad_output, **options)


@case
def options_in_float32(rank: int) -> None:
    check_options(rank, torch.float32)


@case_of(4)
def options_in_float64(rank: int) -> None:
    check_options(rank, torch.float64)


@case_of(2, 3)
def options_in_bfloat16(rank: int) -> None:
    check_options(rank, torch.bfloat16)


@case_of(3)
def options_in_float16(rank: int) -> None:
    check_options(rank, torch.float16)


@case_of(2)
def options_by_torchs_operators_where_there_is_no_kernel(rank: int) -> None:
    with mock.patch.object(shard, "refusal", lambda *arguments: "there are no kernels for tokens on this device"):
        check_options(rank, torch.float32)
        token_statistics_and_their_gradients(rank)


@case
def rows_of_any_shape_and_stride(rank: int) -> None:
    shards = layouts(rank)[1]
    whole = torch.randn(4, 6, shards.num_classes)
    target = torch.randint(shards.num_classes, (4, 6))
    for smoothing in (0.0, 0.1):
        options = {"label_smoothing": smoothing, "reduction": "none"}
        check(vocab_parallel_cross_entropy, whole[:, :-1], target[:, 1:], shards, **options)
        check(vocab_parallel_cross_entropy, whole.transpose(0, 1), target.t(), shards, **options)
        check(vocab_parallel_cross_entropy, whole[0, 0], target[0, 0], shards, **options)
        check(vocab_parallel_cross_entropy, whole, target.int(), shards, **options)
        check(vocab_parallel_cross_entropy, whole, target.to(torch.uint8), shards, **options)


@case_of(2)
def infinite_rows_and_weights(rank: int) -> None:
    """A row of weight 0 may be infinite; a class of infinite weight makes every smoothed loss so."""
    for shards in layouts(rank):
        logits, target = problem(shards)
        target[1] = 0
        logits[1] = -torch.inf
        token_weight = torch.ones(target.shape)
        token_weight[1] = 0.0
        for reduction in REDUCTIONS:
            options: dict[str, Any] = {"token_weight": token_weight, "reduction": reduction}
            loss, gradient = outcome(vocab_parallel_cross_entropy, logits[:, shards.mine], target, **options)
            whole = outcome(fused_losses.functional.cross_entropy, logits, target, **options)
            torch.testing.assert_close(loss, whole[0])
            others = torch.arange(7) != 1  # of which torch's gradient is NaN, ignored or not
            torch.testing.assert_close(gradient[others], whole[1][others][:, shards.mine])
            assert (gradient[1] == 0).all()
        logits = torch.randn(7, shards.num_classes)
        logits[:, -1] += 40.0
        weight = torch.ones(shards.num_classes)
        weight[1] = torch.inf
        losses = vocab_parallel_cross_entropy(
            logits[:, shards.mine],
            torch.zeros(7, dtype=torch.int64),
            weight=weight[shards.mine],
            label_smoothing=0.1,
            reduction="none",
        )
        assert (losses == torch.inf).all(), losses


@case_of(2)
def no_tensor_of_the_logits_size_but_the_gradient(rank: int) -> None:
    """Neither for rows that are a view with gaps, nor for smoothing, whose blocks are smaller than these logits."""
    shards = layouts(rank)[0]
    for options in ({}, {"softcap": 5.0, "lse_square_scale": 1e-3}, {"label_smoothing": 0.1}):
        local = torch.randn(2, 40, 20 * shards.sizes[rank])
        logits, target = local[:, :-1], torch.randint(160, (2, 39))
        leaf = logits.detach().requires_grad_()
        with mock.patch.object(shard, "_ELEMENTS_PER_BLOCK", 2**10):
            with LargeTensors(leaf.numel()) as forward:
                loss = vocab_parallel_cross_entropy(leaf, target, **options)
            with LargeTensors(leaf.numel()) as backward:
                loss.backward()
        assert forward.made == []
        assert len(backward.made) <= 1, backward.made


@case
def no_rows(rank: int) -> None:
    for reduction in REDUCTIONS:
        shards = layouts(rank)[0]
        empty = torch.randn(0, shards.num_classes), torch.zeros(0, dtype=torch.int64)
        ours = vocab_parallel_cross_entropy(empty[0][:, shards.mine], empty[1], reduction=reduction)
        torch.testing.assert_close(ours, F.cross_entropy(*empty, reduction=reduction), equal_nan=True)


# Targets


@case
def every_target_on_one_rank(rank: int) -> None:
    shards = layouts(rank)[0]
    for owner in range(dist.get_world_size()):
        logits, target = problem(shards)
        target = torch.randint(8 * owner, 8 * owner + 8, target.shape)
        check(vocab_parallel_cross_entropy, logits, target, shards)


@case
def all_targets_ignored(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    for options in ({}, {"label_smoothing": 0.1}, {"lse_square_scale": 0.1}, {"ignore_index": 4}):
        ignored = target.fill_(options.get("ignore_index", IGNORED))
        for reduction in REDUCTIONS:
            check(vocab_parallel_cross_entropy, logits, ignored, shards, reduction=reduction, **options)


@case
def ignored_rows_of_minus_infinity(rank: int) -> None:
    """They have a gradient of zeros, where torch's is NaN, and change nothing in the others."""
    shards = layouts(rank)[1]
    for options in ({}, {"label_smoothing": 0.1}, {"lse_square_scale": 0.1}, {"softcap": 5.0}):
        logits, target = problem(shards)
        loss, gradient = check(vocab_parallel_cross_entropy, logits, target, shards, **options)
        logits[2] = -torch.inf
        of_masked = outcome(vocab_parallel_cross_entropy, logits[:, shards.mine], target, **options)
        assert torch.equal(of_masked[0], loss) and torch.equal(of_masked[1], gradient)
        assert (gradient[2] == 0).all()


@case
def padded_vocabulary(rank: int) -> None:
    """The last columns are masked: some of the last rank's, then all of them and some of the rank's before."""
    shards = layouts(rank)[0]
    for padding in (3, 8, 11):
        logits, target = problem(shards)
        logits[:, -padding:] = -torch.inf
        target = target.clamp(max=shards.num_classes - padding - 1)
        check(vocab_parallel_cross_entropy, logits, target, shards)
        check(vocab_parallel_cross_entropy, logits, target, shards, lse_square_scale=0.1, logit_scale=0.5)
        statistics = vocab_parallel_token_statistics(logits[:, shards.mine], target)
        assert all(result.isfinite().all() for result in statistics)


@case
def special_values(rank: int) -> None:
    shards = layouts(rank)[0]
    logits, target = torch.randn(6, shards.num_classes), torch.arange(6)
    logits[0, 9] = torch.inf
    logits[1, 1] = torch.inf
    logits[2, 12] = torch.nan
    logits[3, 3] = -torch.inf
    logits[4] = -torch.inf
    check(vocab_parallel_cross_entropy, logits, target, shards, reduction="none")
    logits[5, [2, 12]] = torch.inf
    ours = vocab_parallel_token_statistics(logits[:, shards.mine], target)
    expected = fused_losses.functional.token_statistics(logits, target)
    for result, same in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, same, equal_nan=True)


@case
def confident_rows(rank: int) -> None:
    """The loss of a target that is the largest by far is exact, not 0, and so is the gradient at it."""
    shards = layouts(rank)[0]
    for margin in (17.0, 30.0, 80.0):
        logits, target = problem(shards)
        target = target.clamp(min=0)
        logits[torch.arange(7), target] = margin + 9
        exact = logits.double()
        others = (exact.scatter(1, target.unsqueeze(1), -torch.inf) - exact.amax(1, keepdim=True)).exp().sum(1)
        options = {"reduction": "none"}
        loss, gradient = outcome(vocab_parallel_cross_entropy, logits[:, shards.mine], target, **options)
        float32 = torch.finfo(torch.float32)
        roundings = {"rtol": 64 * float32.eps, "atol": logits.size(1) * float32.tiny}  # subnormal exponentials are 0
        torch.testing.assert_close(loss.double(), others.log1p(), **roundings)
        is_mine = (target >= shards.start) & (target < shards.mine.stop)
        at_target = gradient[is_mine].gather(1, (target[is_mine] - shards.start).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(-at_target.double(), (others / (1 + others))[is_mine], **roundings)


@case
def vocabularies_beyond_32_bits(rank: int) -> None:
    """As far as indices go: the shards stand far apart, and the classes between them have no rank."""
    shards = layouts(rank)[0]
    logits, target = problem(shards)
    far = 3 * 2**31
    spread = torch.where(target == IGNORED, target, target + target // 8 * far)
    ours = outcome(
        lambda *arguments: vocab_parallel_cross_entropy(*arguments, vocab_start=shards.start + rank * far),
        logits[:, shards.mine],
        spread,
    )
    expected = outcome(vocab_parallel_cross_entropy, logits[:, shards.mine], target)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    far_logits = logits[:, shards.mine]
    statistics = vocab_parallel_token_statistics(far_logits, spread, vocab_start=shards.start + rank * far)
    argmax = logits.argmax(1)
    assert torch.equal(statistics.argmax, argmax + argmax // 8 * far)


# Errors: on every rank, and the next call is served


def raised_by(call: Callable[[], Any], rank: int) -> tuple[type[Exception], str]:
    mine = raised(call)
    shards = layouts(rank)[1]
    check(vocab_parallel_cross_entropy, *problem(shards), shards)
    return mine


@case
def a_target_that_no_rank_owns(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    hidden, linear_weight = torch.randn(7, 4), torch.randn(shards.num_classes, 4)[shards.mine]
    for wrong in (shards.num_classes, -1):
        target[5] = wrong
        for call in (
            lambda: vocab_parallel_cross_entropy(logits[:, shards.mine], target),
            lambda: vocab_parallel_cross_entropy(logits[:, shards.mine], target, vocab_start=shards.start),
            lambda: vocab_parallel_token_statistics(logits[:, shards.mine], target),
            lambda: vocab_parallel_linear_cross_entropy(hidden, linear_weight, target),
        ):
            assert raised_by(call, rank) == (IndexError, f"Target {wrong} is out of bounds.")


@case
def a_class_of_two_ranks(rank: int) -> None:
    shards = layouts(rank)[0]
    logits, _ = problem(shards)
    target = torch.full((7,), 3)
    call = lambda: vocab_parallel_cross_entropy(logits[:, shards.mine], target, vocab_start=0)  # noqa: E731
    assert raised_by(call, rank) == (ValueError, f"class 3 is in the shards of {dist.get_world_size()} ranks")


@case
def wrong_arguments_on_one_rank(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    local = logits[:, shards.mine]
    hidden, linear_weight = torch.randn(7, 4), torch.randn(shards.num_classes, 4)[shards.mine]
    wrong_calls: list[tuple[type[Exception], Callable[[], Any], Callable[[], Any]]] = [
        (
            TypeError,
            lambda: vocab_parallel_cross_entropy(local.int(), target),
            lambda: vocab_parallel_cross_entropy(local, target),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local[:-1], target),
            lambda: vocab_parallel_cross_entropy(local, target),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target.float()),
            lambda: vocab_parallel_cross_entropy(local, target),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target, weight=torch.ones(local.size(1) + 1)),
            lambda: vocab_parallel_cross_entropy(local, target, weight=torch.ones(local.size(1))),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target, label_smoothing=1.5),
            lambda: vocab_parallel_cross_entropy(local, target, label_smoothing=0.5),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target, lse_square_scale=torch.inf),
            lambda: vocab_parallel_cross_entropy(local, target, lse_square_scale=0.5),
        ),
        (  # options of which the packed reduction would have other rows
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target, label_smoothing=1.5),
            lambda: vocab_parallel_cross_entropy(local, target),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target, weight=torch.ones(local.size(1) + 1)),
            lambda: vocab_parallel_cross_entropy(local, target),
        ),
        (
            ValueError,
            lambda: vocab_parallel_cross_entropy(local, target, reduction="median"),
            lambda: vocab_parallel_cross_entropy(local, target),
        ),
        (
            ValueError,
            lambda: vocab_parallel_token_statistics(local, target, softcap=-1.0),
            lambda: vocab_parallel_token_statistics(local, target, softcap=1.0),
        ),
        (
            TypeError,
            lambda: vocab_parallel_linear_cross_entropy(hidden, linear_weight.double(), target),
            lambda: vocab_parallel_linear_cross_entropy(hidden, linear_weight, target),
        ),
    ]
    for index, (type_of_error, wrong, right) in enumerate(wrong_calls):
        culprit = index % dist.get_world_size()
        found, message = raised_by(wrong if rank == culprit else right, rank)
        if rank == culprit:
            assert found is type_of_error, message
        else:
            assert (found, message) == (RuntimeError, f"rank {culprit} of the group raised an error in this call")


@case
def wrong_arguments_on_one_rank_of_a_gpus_group(rank: int) -> None:
    """Whose hosts learn of it after the second reduction, in which all must have asked for as much."""
    with mock.patch.object(statistics, "reads_at_once", lambda reduced: False):
        wrong_arguments_on_one_rank(rank)


@case_of(2)
def options_in_a_gpus_group(rank: int) -> None:
    with mock.patch.object(statistics, "reads_at_once", lambda reduced: False):
        check_options(rank, torch.float32)
        token_statistics_and_their_gradients(rank)


@case
def a_kernel_that_fails_on_one_rank(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)

    def fail(*arguments: Any) -> None:
        raise MemoryError("no memory")

    with mock.patch.object(shard, "call", fail if rank == 0 else shard.call):
        error = raised(lambda: vocab_parallel_cross_entropy(logits[:, shards.mine], target))
    expected = (RuntimeError, "rank 0 of the group raised an error in this call")
    assert error == ((MemoryError, "no memory") if rank == 0 else expected)


@case
def shards_that_change_between_calls(rank: int) -> None:
    """A rank that knows its size from another layout waits for nobody, and nobody for it."""
    ranks = dist.get_world_size()
    base = tuple(5 + other for other in range(ranks))
    changed = [base, (4, *base[1:]), base, (*base[:-1], 2), base[::-1], base]
    for sizes in changed:
        shards = Shards(sizes, rank)
        check(vocab_parallel_cross_entropy, *problem(shards), shards)


@case
def first_classes_given_on_some_ranks(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    start = shards.start if rank == 0 else None
    error = raised_by(lambda: vocab_parallel_cross_entropy(logits[:, shards.mine], target, vocab_start=start), rank)
    assert error == (ValueError, "vocab_start must be given on every rank of the group, or on none")


# What is sent


@case
def one_maximum_and_one_packed_sum(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    local, num_rows, tail = logits[:, shards.mine], 7, 3
    weight = torch.ones(local.size(1))
    vocab_parallel_cross_entropy(local, target)  # the sizes of the shards are exchanged, once
    for options, rows, more in [({}, 3, 0), ({"weight": weight}, 4, 0), ({"label_smoothing": 0.1}, 4, 2)]:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            leaf = local.to(dtype).requires_grad_()
            with counted_collectives() as calls:
                vocab_parallel_cross_entropy(leaf, target, **options).backward()
            size = 8 if dtype == torch.float64 else 4
            numbers = (num_rows + tail, rows * num_rows + more)
            assert calls == [("MAX", numbers[0], numbers[0] * size), ("SUM", numbers[1], numbers[1] * size)]
    with counted_collectives() as calls:
        vocab_parallel_token_statistics(local, target)
    assert [call[:2] for call in calls] == [("MAX", num_rows + tail), ("MIN", num_rows), ("SUM", 4 * num_rows)]


@case
def a_linear_layer_sends_its_rows_once_and_the_gradient_of_its_input(rank: int) -> None:
    shards = layouts(rank)[1]
    _, target = problem(shards)
    hidden, linear_weight = torch.randn(7, 4, requires_grad=True), torch.randn(shards.num_classes, 4)[shards.mine]
    for reduces in (True, False):
        with mock.patch.object(linear_chunks, "rows_of_chunk", lambda *sizes: 2), counted_collectives() as calls:
            vocab_parallel_linear_cross_entropy(hidden, linear_weight, target, reduce_input_gradient=reduces).backward()
        expected = [("MAX", 7 + 3), ("SUM", 3 * 7), ("SUM", 7 * 4)]
        assert [call[:2] for call in calls] == expected[: 3 if reduces else 2]


# Statistics


def statistics_by_torch(logits: Tensor, target: Tensor, logit_scale: float = 1.0, softcap: float | None = None) -> Any:
    x = logits * logit_scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    log_p = x.log_softmax(-1)
    counts = target != IGNORED
    log_prob = torch.where(counts, log_p.gather(-1, target.where(counts, 0).unsqueeze(-1)).squeeze(-1), 0)
    return log_prob, x.logsumexp(-1), -(log_p.exp() * log_p).sum(-1), x.argmax(-1)


@case
def token_statistics_and_their_gradients(rank: int) -> None:
    for dtype, transform, shards in itertools.product(DTYPES, TRANSFORMS, layouts(rank)):
        logits, target = problem(shards, dtype)
        computation = torch.float64 if dtype == torch.float64 else torch.float32
        grads = [torch.randn(7, dtype=torch.float64) for _ in range(3)]
        found = []
        for function, whole in (
            (vocab_parallel_token_statistics, logits[:, shards.mine]),
            (statistics_by_torch, logits.to(computation)),
            (statistics_by_torch, logits.double()),
        ):
            leaf = whole.clone().requires_grad_()
            results = function(leaf, target, **transform)
            torch.autograd.backward(results[:3], [g.to(r.dtype) for g, r in zip(grads, results, strict=False)])
            mine = leaf.grad if function is vocab_parallel_token_statistics else leaf.grad[:, shards.mine]
            found.append(([result.detach() for result in results], mine, leaf.grad))
        for ours, torchs, reference in zip(*(results[:3] for results, _, _ in found), strict=True):
            assert_not_less_exact(ours, torchs, reference)
        assert torch.equal(found[0][0][3], found[2][0][3])
        if found[0][1].numel():
            assert_not_less_exact(*(mine for _, mine, _ in found), terms=found[2][2].abs().amax(), what="gradient")


@case
def ties_are_the_first(rank: int) -> None:
    shards = layouts(rank)[0]
    logits = torch.zeros(3, shards.num_classes)
    logits[1, [7, 9, 15]] = 1
    logits[2, [9, 15]] = torch.nan
    statistics = vocab_parallel_token_statistics(logits[:, shards.mine], torch.zeros(3, dtype=torch.int64))
    assert statistics.argmax.tolist() == [0, 7, 9]


# Linear layers


@case_of(2, 3)
def linear_layers(rank: int) -> None:
    """No less exact than torch's layer and loss, whatever the type: nothing but the results is rounded."""
    grid = itertools.product(DTYPES, [0.0, 0.1], [False, True], REDUCTIONS)
    for shards, (dtype, smoothing, has_bias, reduction) in zip(itertools.cycle(layouts(rank)), grid):
        computation = torch.float64 if dtype == torch.float64 else torch.float32
        _, target = problem(shards)
        target = target[:6].view(2, 3)
        tensors = [torch.randn(2, 3, 5), torch.randn(shards.num_classes, 5), torch.randn(shards.num_classes)]
        tensors = [tensor.to(dtype) for tensor in tensors[: 2 + has_bias]]
        mine = [tensors[0], *(tensor[shards.mine] for tensor in tensors[1:])]
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction, "softcap": 20.0}

        def ours(input: Tensor, weight: Tensor, bias: Tensor | None = None, target=target, options=options) -> Tensor:
            return vocab_parallel_linear_cross_entropy(input, weight, target, linear_bias=bias, **options)

        def torchs(input: Tensor, weight: Tensor, bias: Tensor | None = None, target=target, options=options) -> Tensor:
            dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
            return torchs_loss(F.linear(input, weight, bias).to(dtype), target, **options)

        found = []
        with (
            mock.patch.object(linear_chunks, "rows_of_chunk", lambda *sizes: 2),
            mock.patch.object(linear_chunks, "CHUNK_BYTES", 0 if has_bias else linear_chunks.CHUNK_BYTES),
            mock.patch.object(linear_chunks, "_MOVED_BYTES", 1),
        ):
            for function, values in (
                (ours, mine),
                (torchs, tensors),
                (torchs, [tensor.double() for tensor in tensors]),
            ):
                leaves = [value.detach().clone().requires_grad_() for value in values]
                loss = function(*leaves)
                loss.backward(torch.ones_like(loss))
                gradients = [leaf.grad for leaf in leaves]
                if function is not ours:
                    gradients[1:] = [gradient[shards.mine] for gradient in gradients[1:]]
                found.append([loss.detach(), *gradients])
        assert found[0][0].dtype == computation
        for name, ours_of, torchs_of, reference in zip(("loss", "input", "weight", "bias"), *found, strict=False):
            if not ours_of.numel():
                continue
            terms = reference.abs().amax().clamp(min=1) if name == "loss" else None
            assert_not_less_exact(ours_of, torchs_of, reference, terms=terms, what=f"{name} in {dtype}")


@case
def linear_layers_on_processors_that_multiply_different_types(rank: int) -> None:
    """The gradients of the input that are added up have one type, whatever the products of a rank come out in."""
    shards = layouts(rank)[0]
    _, target = problem(shards)
    input = torch.randn(7, 5).bfloat16()
    weight = torch.randn(shards.num_classes, 5).bfloat16()
    with (
        mock.patch.object(linear_products, "_has_bfloat16_instructions", lambda: rank == 0),
        mock.patch.object(linear_products, "_FEWEST_MULTIPLICATIONS", 0),
    ):
        leaf = input.clone().requires_grad_()
        vocab_parallel_linear_cross_entropy(leaf, weight[shards.mine], target).backward()
    exact = input.double().requires_grad_()
    torchs_loss(F.linear(exact, weight.double()), target).backward()
    assert (leaf.grad - exact.grad).norm() <= 0.01 * exact.grad.norm()


@case
def linear_layers_whose_input_gradient_is_not_reduced(rank: int) -> None:
    shards = layouts(rank)[1]
    _, target = problem(shards)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(shards.num_classes, 5, dtype=torch.float64)
    gradients = []
    for reduces in (True, False):
        leaf = hidden.clone().requires_grad_()
        mine = weight[shards.mine]
        vocab_parallel_linear_cross_entropy(leaf, mine, target, reduce_input_gradient=reduces).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(sum(of_all_ranks(gradients[1])), gradients[0])


@case_of(2)
def linear_layers_under_autocast(rank: int) -> None:
    shards = layouts(rank)[1]
    _, target = problem(shards)
    tensors = torch.randn(7, 5), torch.randn(shards.num_classes, 5)
    outcomes = []
    for casts in (True, False):
        hidden, weight = (tensor.clone().requires_grad_() for tensor in tensors)
        local = weight[shards.mine]
        if casts:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = vocab_parallel_linear_cross_entropy(hidden, local, target)
        else:
            loss = vocab_parallel_linear_cross_entropy(hidden.bfloat16(), local.bfloat16(), target)
        loss.backward()
        outcomes.append((loss.detach(), hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@case
def autocast_leaves_float64_as_it_is(rank: int) -> None:
    """A linear layer's rule of torch."""
    shards = layouts(rank)[1]
    _, target = problem(shards)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(shards.num_classes, 5, dtype=torch.float64)
    expected = vocab_parallel_linear_cross_entropy(hidden, weight[shards.mine], target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vocab_parallel_linear_cross_entropy(hidden, weight[shards.mine], target)
    assert loss.dtype == torch.float64
    assert torch.equal(loss, expected)


# Autograd, compile, modules


@case
def second_derivatives_are_an_error(rank: int) -> None:
    """And not a part of one: a penalty of the gradient beside the loss would train on, wrongly."""
    shards = layouts(rank)[0]
    logits, target = problem(shards)
    hidden, layer = torch.randn(7, 4, requires_grad=True), torch.randn(shards.num_classes, 4)[shards.mine]
    leaf = logits[:, shards.mine].clone().requires_grad_()
    for loss, input in (
        (vocab_parallel_cross_entropy(leaf, target), leaf),
        (vocab_parallel_token_statistics(leaf, target).entropy.sum(), leaf),
        (vocab_parallel_linear_cross_entropy(hidden, layer, target), hidden),
    ):
        (gradient,) = torch.autograd.grad(loss, input, create_graph=True)
        total = loss + gradient.square().sum()
        for inputs in (None, [input]):
            type_of_error, message = raised(lambda: total.backward(inputs=inputs, retain_graph=True))  # noqa: B023
            assert (type_of_error, "differentiated twice" in message) == (RuntimeError, True)


@case
def two_losses_and_a_kept_graph(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards, torch.float64)

    def two(function: Callable[..., Tensor], leaf: Tensor) -> Tensor:
        first = function(leaf, target, softcap=5.0)
        return first * 2 + function(leaf, target, label_smoothing=0.1, reduction="none").square().sum()

    leaf, whole = logits[:, shards.mine].clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = two(vocab_parallel_cross_entropy, leaf), two(torchs_loss, whole)
    for kept in (True, False):
        loss.backward(retain_graph=kept)
        expected.backward(retain_graph=kept)
        torch.testing.assert_close(leaf.grad, whole.grad[:, shards.mine])


@case
def token_weights_have_a_gradient(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards, torch.float64)
    weights = [torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    vocab_parallel_cross_entropy(logits[:, shards.mine], target, token_weight=weights[0]).backward()
    torchs_loss(logits, target, token_weight=weights[1]).backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad)


def check_compiled(step: Callable[..., Tensor], leaves: list[Tensor], backend: str) -> list[str]:
    """A graph has no break and the bits of eager mode; the operators in it."""
    torch.compiler.reset()
    held: list[str] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        held.extend(str(node.target) for node in graph.graph.nodes if "vocab_parallel" in str(node.target))
        return lookup_backend(backend)(graph, inputs)

    found = []
    for function in (step, torch.compile(step, backend=note, fullgraph=True)):
        own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        loss = function(*own)
        loss.backward(torch.ones_like(loss))
        found.append([loss.detach(), *(leaf.grad for leaf in own)])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled), backend
    return held


@case
def a_compiled_graph_holds_the_operators(rank: int) -> None:
    """Uneven shards give the ranks different sizes to plan for; what they send must come in one order."""
    shards = Shards((300, 3, 0, 40)[: dist.get_world_size()], rank)
    logits, target = problem(shards)
    layer = [torch.randn(7, 64), *(x[shards.mine] for x in torch.randn(shards.num_classes, 65).split((64, 1), 1))]
    weight = torch.rand(shards.num_classes)[shards.mine]
    options: list[dict[str, Any]] = [
        {"reduction": "none"},
        {"label_smoothing": 0.1, "weight": weight},
        {"lse_square_scale": 0.1, "logit_scale": -2, "softcap": 5.0},
    ]

    def step(x: Tensor, h: Tensor, w: Tensor, b: Tensor, u: Tensor) -> Tensor:
        results = []
        for i, each in enumerate(options):
            each = {**each, "token_weight": u}
            results.append(vocab_parallel_cross_entropy(x * 2, target, **each))
            results.append(vocab_parallel_linear_cross_entropy(h * (i + 1), w, target, linear_bias=b[:, 0], **each))
        results += vocab_parallel_token_statistics(x + 1, target, softcap=5.0)[:3]
        return torch.cat([result.view(-1) for result in results])

    leaves = [logits[:, shards.mine], *layer, torch.randn(7)]
    names = ["cross_entropy", "linear_cross_entropy"] * 3 + ["token_statistics"]
    for backend in ("aot_eager", "inductor") if dist.get_world_size() == 3 else ("aot_eager",):  # not in a quick run
        held = check_compiled(step, leaves, backend)
        assert [name.removeprefix("fused_losses.vocab_parallel_").split(".")[0] for name in held] == names


@case
def errors_inside_compiled_graphs(rank: int) -> None:
    """Of one rank's arguments, which the trace might have raised there alone, and of all ranks' targets."""
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    local = logits[:, shards.mine]
    compiled = torch.compile(vocab_parallel_cross_entropy, backend="aot_eager", fullgraph=True)
    token_weight = torch.ones(6 if rank == 1 else 7)
    error = raised(lambda: compiled(local, target, token_weight=token_weight))
    assert error[0] is (ValueError if rank == 1 else RuntimeError), error
    target[1] = shards.num_classes
    assert raised(lambda: compiled(local, target)) == (IndexError, f"Target {shards.num_classes} is out of bounds.")


@case
def modules_are_the_functions(rank: int) -> None:
    shards = layouts(rank)[1]
    logits, target = problem(shards)
    local, token_weight = logits[:, shards.mine], torch.rand(7)
    weight = torch.rand(shards.num_classes)[shards.mine]
    options: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 5.0}
    module = VocabParallelCrossEntropyLoss(weight, **options)
    assert list(module.state_dict()) == ["weight"]
    expected = vocab_parallel_cross_entropy(local, target, weight=weight, token_weight=token_weight, **options)
    assert torch.equal(module(local, target, token_weight), expected)
    hidden, layer = torch.randn(7, 4), torch.randn(shards.num_classes, 5)[shards.mine]
    linear_weight, bias = layer[:, :4], layer[:, 4]
    linear = VocabParallelLinearCrossEntropyLoss(weight, **options)
    arguments = {"linear_bias": bias, "token_weight": token_weight, "weight": weight, **options}
    expected = vocab_parallel_linear_cross_entropy(hidden, linear_weight, target, **arguments)
    assert torch.equal(linear(hidden, linear_weight, target, bias, token_weight), expected)
    ours = VocabParallelTokenStatistics(softcap=5.0)(local, target)
    expected = vocab_parallel_token_statistics(local, target, softcap=5.0)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


# Beside other ways to spread a model


@case_of(4)
def fully_sharded_data_and_a_spread_vocabulary(rank: int) -> None:
    """On a mesh of 2 x 2 a small model takes the same steps as in one process."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "vocabulary"))
    vocabulary = mesh["vocabulary"]
    shards = Shards((10, 7), vocabulary.get_local_rank())
    body = torch.nn.Sequential(torch.nn.Embedding(17, 8), torch.nn.Linear(8, 8), torch.nn.Tanh()).double()
    head = torch.randn(17, 8, dtype=torch.float64)
    tokens, target = torch.randint(17, (6, 8, 2)).unbind(-1)
    curves = []
    for spread in (False, True):
        model = copy.deepcopy(body)
        layer = torch.nn.Parameter((head[shards.mine] if spread else head).clone())
        if spread:
            fully_shard(model, mesh=mesh["data"])
        optimizer = torch.optim.SGD([*model.parameters(), layer], lr=0.5)
        rows = slice(4 * mesh["data"].get_local_rank(), 4 * mesh["data"].get_local_rank() + 4)
        curve = []
        for step in range(len(tokens)):
            optimizer.zero_grad()
            if spread:
                hidden = model(tokens[step, rows])
                options: dict[str, Any] = {"group": vocabulary.get_group(), "label_smoothing": 0.1}
                if step % 2:
                    loss = vocab_parallel_linear_cross_entropy(hidden, layer, target[step, rows], **options)
                else:
                    gathered = _SumOfGradients.apply(hidden, vocabulary.get_group())
                    loss = vocab_parallel_cross_entropy(gathered @ layer.t(), target[step, rows], **options)
                loss.backward()
                dist.all_reduce(layer.grad, group=mesh["data"].get_group())
                layer.grad /= 2
                mean = loss.detach().clone()
                dist.all_reduce(mean, group=mesh["data"].get_group())
                curve.append(mean / 2)
            else:
                loss = torchs_loss(model(tokens[step]) @ layer.t(), target[step], label_smoothing=0.1)
                loss.backward()
                curve.append(loss.detach())
            optimizer.step()
        curves.append(torch.stack(curve))
    torch.testing.assert_close(curves[1], curves[0])
    assert curves[0][0] != curves[0][-1]


# DTensors


def check_dtensors(mesh: DeviceMesh, by_rows: list[Placement], function: Callable[..., Tensor]) -> None:
    """Classes over the last dimension of the mesh, 9 of them: shards are uneven, of four ranks one is empty."""
    for reduction, smoothing, placement in itertools.product(REDUCTIONS, [0.0, 0.1], [None, Replicate(), Shard(0)]):
        logits, target = torch.randn(8, 9), torch.randint(9, (8,))
        target[3] = IGNORED
        weight = None if placement is None else torch.rand(9)
        grad_output = torch.randn(8 if reduction == "none" else ())
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        expected, gradient = outcome(torchs_loss, logits, target, grad_output, weight=weight, **options)
        leaf = distribute_tensor(logits, mesh, [*by_rows, Shard(1)]).requires_grad_()
        indices = distribute_tensor(target, mesh, [*by_rows, Replicate()])
        if weight is not None:
            weight = distribute_tensor(weight, mesh, [*(Replicate() for _ in by_rows), placement])
        explained = fused_losses.explain(fused_losses.functional.cross_entropy, leaf, indices, weight=weight, **options)
        assert explained.startswith("kernel")
        fused_losses.routes(reset=True)
        loss = function(leaf, indices, weight=weight, **options)
        assert fused_losses.routes()["cross_entropy"] == {"kernel, spread over a mesh": 1}
        (loss.full_tensor() * grad_output).sum().backward()
        assert leaf.grad.placements == (*by_rows, Shard(1)) and loss.dtype == logits.dtype
        roundings = {"rtol": 32 * torch.finfo(torch.float32).eps, "atol": 32 * torch.finfo(torch.float32).eps}
        torch.testing.assert_close(loss.full_tensor(), expected, **roundings)
        torch.testing.assert_close(leaf.grad.full_tensor(), gradient, **roundings)


@case_of(4)
def dtensors_whose_classes_are_spread(rank: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    check_dtensors(mesh, [], fused_losses.functional.cross_entropy)


@case_of(4)
def dtensors_on_a_mesh_of_two_dimensions(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    for by_rows in (Shard(0), Replicate()):
        check_dtensors(mesh, [by_rows], fused_losses.functional.cross_entropy)


@case_of(2)
def dtensors_of_16_bits(rank: int) -> None:
    """Under autocast the loss is of float32 and not rounded, as torch's."""
    mesh = init_device_mesh("cpu", (2,))
    target = torch.randint(9, (8,))
    for dtype, under_autocast, reduction in itertools.product(
        (torch.bfloat16, torch.float16), (False, True), REDUCTIONS
    ):
        logits = torch.randn(8, 9).to(dtype)
        leaf = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
        with torch.autocast("cpu", enabled=under_autocast):
            loss = fused_losses.functional.cross_entropy(
                leaf, distribute_tensor(target, mesh, [Replicate()]), reduction=reduction
            )
        expected = F.cross_entropy(logits.float(), target, reduction=reduction)
        torch.testing.assert_close(loss.full_tensor(), expected if under_autocast else expected.to(dtype))
        loss.sum().backward()
        assert leaf.grad.dtype == dtype and leaf.grad.placements == (Shard(1),)


@case_of(2)
def patched_code_in_loss_parallel(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    with fused_losses.patched(), loss_parallel():
        check_dtensors(mesh, [], F.cross_entropy)


class _SumOfGradients(torch.autograd.Function):
    """What a layer whose outputs are spread does with its input: Megatron's f."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
