"""DTensors whose rows are replicated or spread over a mesh, against one process and torch: see several_ranks.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CROSS_ENTROPY,
    LOSSES,
    NLL_LOSS,
    REDUCTIONS,
    Loss,
    sample,
    sample_class_probabilities,
)
from several_ranks import case, case_of
from sharded import IGNORED, of_all_ranks, raised
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.placement_types import _StridedShard

import fused_losses
from fused_losses.distributed import dtensor_rows, sum_over_rows

ROUTE = "kernel, on the rows of each rank"


@dataclass
class Problem:
    """A call in one process, and how its weights are placed."""

    loss: Loss
    input: Tensor
    target: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    class_axis: int | None = 1


def problems(num_rows: int, dtype: torch.dtype = torch.float64) -> list[Problem]:
    """Rows are ignored in the first half alone, so that ranks have other denominators."""
    logits, target = sample(CROSS_ENTROPY, (num_rows, 5), dtype)
    target[: num_rows // 2] = IGNORED
    class_weight, probabilities = torch.rand(5, dtype=dtype), sample_class_probabilities((num_rows, 5), dtype)
    images, labels = sample(CROSS_ENTROPY, (num_rows, 3, 4), dtype)
    labels[: num_rows // 2, 1:] = IGNORED
    log_probabilities = logits.log_softmax(1)
    of_elements = {loss: sample(loss, (num_rows, 5), dtype) for loss in (BINARY_CROSS_ENTROPY,)}
    return [
        Problem(CROSS_ENTROPY, logits, target),
        Problem(CROSS_ENTROPY, logits, target, {"weight": class_weight}, {"label_smoothing": 0.1}),
        Problem(
            CROSS_ENTROPY, logits, target.where(target == IGNORED, 2).to(torch.uint8), options={"ignore_index": 156}
        ),
        Problem(CROSS_ENTROPY, logits, probabilities, {"weight": class_weight}, {"label_smoothing": 0.1}),
        Problem(CROSS_ENTROPY, images, labels),
        Problem(NLL_LOSS, log_probabilities, target, {"weight": class_weight}),
        Problem(
            BINARY_CROSS_ENTROPY,
            *of_elements[BINARY_CROSS_ENTROPY],
            {"weight": torch.rand(num_rows, 5, dtype=dtype)},
            class_axis=None,
        ),
        Problem(
            BINARY_CROSS_ENTROPY_WITH_LOGITS,
            logits,
            probabilities,
            {"weight": torch.rand(num_rows, 1, dtype=dtype), "pos_weight": torch.rand(5, dtype=dtype)},
            class_axis=None,
        ),
    ]


def spread(tensor: Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """Without sending anything: every rank has drawn the whole."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def of_target(placement: Placement, problem: Problem) -> Placement:
    has_no_classes = problem.target.dim() < problem.input.dim()
    return Shard(placement.dim - 1) if has_no_classes and placement.is_shard() and placement.dim > 1 else placement


def expected_of(problem: Problem, reduction: str, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    leaf = problem.input.clone().requires_grad_()
    target = problem.target
    loss = problem.loss.torchs(leaf, target, reduction=reduction, **problem.weights, **problem.options)
    loss.backward(grad_output)
    return loss.detach(), leaf.grad


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, equal_nan=True)


def check_rows(problem: Problem, mesh: DeviceMesh, placements: list[Placement], reduction: str) -> DTensor:
    """Loss and gradient are those of one process, on every rank, and placed as promised; returns the loss."""
    rows = problem.target.shape if problem.class_axis == 1 else problem.input.shape
    if problem.target.is_floating_point() and problem.class_axis == 1:
        rows = problem.input.shape[:1]
    grad_output = torch.randn(rows if reduction == "none" else (), dtype=problem.input.dtype)
    expected, gradient = expected_of(problem, reduction, grad_output)
    leaf = spread(problem.input, mesh, placements).requires_grad_()
    target = spread(problem.target, mesh, [of_target(placement, problem) for placement in placements])
    weights = {name: spread(weight, mesh, [Replicate()] * mesh.ndim) for name, weight in problem.weights.items()}
    options = {**weights, **problem.options, "reduction": reduction}
    assert fused_losses.explain(problem.loss.ours, leaf, target, **options).startswith(f"{ROUTE} of ")
    fused_losses.routes(reset=True)
    loss = problem.loss.ours(leaf, target, **options)
    assert fused_losses.routes() == {problem.loss.name: {ROUTE: 1}}
    (loss.full_tensor() * grad_output).sum().backward()
    assert leaf.grad.placements == tuple(placements)
    if reduction != "none":
        assert all(placement == Replicate() for placement in loss.placements)
        assert_same(loss.to_local().detach(), expected)  # so that item() is the loss
    assert_same(loss.full_tensor().detach(), expected)
    assert_same(leaf.grad.full_tensor(), gradient)
    return loss


def check_all(mesh: DeviceMesh, layouts: list[list[Placement]], nums_of_rows: list[int]) -> None:
    for placements, num_rows, reduction in itertools.product(layouts, nums_of_rows, REDUCTIONS):
        for problem in problems(num_rows):
            check_rows(problem, mesh, placements, reduction)


@case
def rows_over_a_mesh(rank: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    check_all(mesh, [[Shard(0)]], [7, 2])  # uneven; of three and four ranks some have none
    check_all(mesh, [[Replicate()]], [2])


@case_of(4)
def rows_over_a_mesh_of_two_dimensions(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    check_all(mesh, [[Shard(0), Shard(0)], [Shard(0), Replicate()], [Replicate(), Shard(0)]], [7])


@case_of(2)
def other_axes_than_the_first(rank: int) -> None:
    """Positions of images, elements of the binary losses; and classes, which are torch's to gather."""
    mesh = init_device_mesh("cpu", (2,))
    *_, images, _, probabilities, logits = problems(7)
    for problem, axis in ((images, 2), (probabilities, 1), (logits, 1)):
        for reduction in REDUCTIONS:
            loss = check_rows(problem, mesh, [Shard(axis)], reduction)
            assert reduction != "none" or loss.placements == (of_target(Shard(axis), problem),)
    for problem in (images, problems(7)[5]):
        leaf, target = (spread(x, mesh, [y]) for x, y in ((problem.input, Shard(1)), (problem.target, Replicate())))
        assert "the classes are spread" in fused_losses.explain(problem.loss.ours, leaf, target)
        assert_same(problem.loss.ours(leaf, target).full_tensor(), problem.loss.torchs(problem.input, problem.target))


@case
def a_mean_of_means_is_found(rank: int) -> None:
    """What torch gives of rows that are spread: 2.679 for 2.661 in issue 14."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    of_all = dtensor_rows.sum_over_rows

    def of_means(compute: Callable[[], tuple[Tensor, Tensor]], *others: Any) -> tuple[Tensor, Tensor]:
        def mean() -> tuple[Tensor, Tensor]:
            total, denominator = compute()
            return total / denominator, torch.ones_like(denominator)

        return of_all(mean, *others)

    problem = problems(4 * dist.get_world_size())[0]
    problem.target[:] = 1
    problem.target[:3] = IGNORED
    check_rows(problem, mesh, [Shard(0)], "mean")
    with mock.patch.object(dtensor_rows, "sum_over_rows", of_means):
        assert raised(lambda: check_rows(problem, mesh, [Shard(0)], "mean"))[0] is AssertionError


@case
def no_row_that_counts(rank: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for problem, reduction in itertools.product(problems(7)[:2], REDUCTIONS):
        problem.target[:] = IGNORED
        check_rows(problem, mesh, [Shard(0)], reduction)


@case
def targets_and_weights_placed_otherwise(rank: int) -> None:
    """As torch takes them: spread beside replicated rows and the other way round, parts, weights that are spread."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    placements: list[Placement] = [Shard(0), Replicate()]
    for problem, reduction in itertools.product(problems(7), REDUCTIONS):
        loss, options = problem.loss, {**problem.options, "reduction": reduction}
        expected = loss.torchs(problem.input, problem.target, **problem.weights, **options)
        for ours, others in itertools.permutations(placements):
            weights = {name: spread(weight, mesh, [Shard(0)]) for name, weight in problem.weights.items()}
            arguments = (spread(problem.input, mesh, [ours]), spread(problem.target, mesh, [others]))
            assert_same(loss.ours(*arguments, **weights, **options).full_tensor(), expected)
        part = DTensor.from_local(problem.input / dist.get_world_size(), mesh, [Partial()])
        weights = {name: spread(weight, mesh, [Replicate()]) for name, weight in problem.weights.items()}
        target = spread(problem.target, mesh, [Replicate()])
        assert_same(loss.ours(part, target, **weights, **options).full_tensor(), expected)


@case
def plain_tensors_where_torch_takes_them(rank: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    _, problem, *_, of_elements = problems(7)
    rows = spread(problem.input, mesh, [Shard(0)])
    arguments = {**problem.weights, **problem.options}
    assert "not all tensors are DTensors" in fused_losses.explain(CROSS_ENTROPY.ours, rows, problem.target, **arguments)
    assert raised(lambda: CROSS_ENTROPY.ours(rows, problem.target, **arguments))[0] is RuntimeError
    with implicit_replication():
        ours = CROSS_ENTROPY.ours(rows, problem.target, **arguments)
    assert_same(ours.full_tensor(), CROSS_ENTROPY.torchs(problem.input, problem.target, **arguments))
    one = {"pos_weight": torch.tensor(2.0, dtype=torch.float64)}
    target = spread(of_elements.target, mesh, [Shard(0)])
    ours = of_elements.loss.ours(rows, target, **one)
    assert_same(ours.full_tensor(), of_elements.loss.torchs(of_elements.input, of_elements.target, **one))


@case
def targets_that_are_differentiated(rank: int) -> None:
    """They are torch's, which gives the right mean of probabilities."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    problem = problems(7)[3]
    rows, target = (spread(x, mesh, [Shard(0)]) for x in (problem.input, problem.target.requires_grad_()))
    target = target.detach().requires_grad_()
    explained = fused_losses.explain(CROSS_ENTROPY.ours, rows, target)
    assert explained.endswith("a target or weight requires a gradient")
    loss, expected = CROSS_ENTROPY.ours(rows, target), CROSS_ENTROPY.torchs(problem.input, problem.target)
    loss.full_tensor().backward()
    expected.backward()
    assert_same(loss.full_tensor(), expected)
    assert_same(target.grad.full_tensor(), problem.target.grad)
    with torch.no_grad():
        assert fused_losses.explain(CROSS_ENTROPY.ours, rows, target).startswith(ROUTE)


# Backwards


@case
def two_losses_and_a_kept_graph_of_rows(rank: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    problem = problems(7)[0]
    target = spread(problem.target, mesh, [Shard(0)])

    def two(function: Callable[..., Tensor], leaf: Tensor, target: Tensor) -> Tensor:
        first = function(leaf, target)
        return (first * 2 + 1).log() + function(leaf, target, label_smoothing=0.1, reduction="none").square().sum()

    leaf, whole = spread(problem.input, mesh, [Shard(0)]).requires_grad_(), problem.input.clone().requires_grad_()
    loss, expected = two(CROSS_ENTROPY.ours, leaf, target), two(CROSS_ENTROPY.torchs, whole, problem.target)
    for kept in (True, False):
        loss.backward(retain_graph=kept)
        expected.backward(retain_graph=kept)
        assert_same(leaf.grad.full_tensor(), whole.grad)


@case
def second_derivatives_of_rows(rank: int) -> None:
    """Also through a mean's grad_output, which depends on the rows of all ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for problem, reduction in itertools.product(problems(7) + problems(2), ["mean", "sum"]):
        weights = {name: spread(weight, mesh, [Replicate()]) for name, weight in problem.weights.items()}
        target = spread(problem.target, mesh, [Shard(0)])
        found = []
        for x, y, function, given in (
            (spread(problem.input, mesh, [Shard(0)]), target, problem.loss.ours, weights),
            (problem.input.clone(), problem.target, problem.loss.torchs, problem.weights),
        ):
            leaf = x.requires_grad_()
            loss = function(leaf, y, reduction=reduction, **given, **problem.options)
            (gradient,) = torch.autograd.grad(loss.square(), leaf, create_graph=True)
            gradient.square().sum().backward()
            found.append(leaf.grad.full_tensor() if isinstance(leaf.grad, DTensor) else leaf.grad)
        assert_same(*found)


# Types


@case_of(2)
def sums_of_16_bits(rank: int) -> None:
    """A rank's sum is beyond float16, or would lose digits; the mean is rounded once."""
    mesh = init_device_mesh("cpu", (2,))
    for dtype, loss, under_autocast in itertools.product(
        (torch.float16, torch.bfloat16), (CROSS_ENTROPY, NLL_LOSS, BINARY_CROSS_ENTROPY_WITH_LOGITS), (False, True)
    ):
        input, target = sample(loss, (5000, 3), dtype)
        input = input * 20 if loss.by_class else input * 5
        leaf = spread(input, mesh, [Shard(0)]).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16) if under_autocast else nullcontext():
            ours = loss.ours(leaf, spread(target, mesh, [Shard(0)]))
        expected, whole = loss.torchs(input.double(), target if loss.by_class else target.double()), ours.to_local()
        assert whole.dtype == (torch.float32 if under_autocast else dtype)
        torch.testing.assert_close(whole.double(), expected, rtol=2 * torch.finfo(whole.dtype).eps, atol=0)
        ours.backward()
        assert leaf.grad.dtype == dtype


# What is torch's, whatever is spread

WAYS: list[tuple[Placement, Placement]] = [(Shard(0), Shard(0)), (Shard(1), Replicate())]  # of logits and targets


@case_of(2)
def a_rank_outside_the_mesh(rank: int) -> None:
    mesh = DeviceMesh("cpu", [0])
    problem = problems(4)[0]
    expected = problem.loss.torchs(problem.input, problem.target)
    for placements in WAYS:
        arguments = [spread(x, mesh, [y]) for x, y in zip((problem.input, problem.target), placements, strict=True)]
        loss = problem.loss.ours(*arguments).to_local()
        explained = fused_losses.explain(problem.loss.ours, *arguments)
        if rank == 0:
            assert_same(loss, expected)
            assert explained.startswith("kernel")
        else:
            assert explained.endswith("this rank is not in the mesh")


@case_of(2)
def fake_tensors_in_dtensors(rank: int) -> None:
    """They stand for sizes: a memory estimate."""
    mesh = init_device_mesh("cpu", (2,))
    for of_logits, of_target in WAYS:
        with FakeTensorMode():
            leaf = DTensor.from_local(torch.randn(4, 6), mesh, [of_logits], run_check=False).requires_grad_()
            num_targets = 4 if of_target == Shard(0) else leaf.size(0)
            target = DTensor.from_local(torch.zeros(num_targets).long(), mesh, [of_target], run_check=False)
            loss = CROSS_ENTROPY.ours(leaf, target)
            loss.backward()
        assert loss.shape == () and leaf.grad.shape == leaf.shape


def assert_same_error(loss: Loss, *arguments: Any, **options: Any) -> None:
    ours, torchs = (raised(lambda f=f: f(*arguments, **options)) for f in (loss.ours, loss.torchs))
    assert ours == torchs


@case_of(2)
def what_is_wrong_says_torch(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for of_logits, of_target in WAYS:
        logits, target = spread(torch.rand(4, 6), mesh, [of_logits]), spread(torch.arange(4), mesh, [of_target])
        assert_same_error(CROSS_ENTROPY, logits, target, spread(torch.rand(6).double(), mesh, [Replicate()]))
        assert_same_error(CROSS_ENTROPY, logits, target, ignore_index=2.5)
        assert_same_error(CROSS_ENTROPY, logits, target, ignore_index=2**63)
        assert_same_error(CROSS_ENTROPY, logits, target, reduction=["mean"])
        for loss in LOSSES:
            assert_same_error(loss, logits, None)


@case_of(4)
def rows_that_are_not_in_their_order(rank: int) -> None:
    """As two dimensions of a mesh shard a model, the inner one first. Torch leaves them where they are."""
    mesh = init_device_mesh("cpu", (2, 2))
    first, second = mesh.get_coordinate()
    placements = [_StridedShard(0, split_factor=2), Shard(0)]
    problem = problems(8)[0]
    rows, target = (
        DTensor.from_local(x.unflatten(0, (2, 2, 2))[second, first], mesh, placements, run_check=False)
        for x in (problem.input, problem.target)
    )
    assert fused_losses.explain(problem.loss.ours, rows, target).endswith("the input is not spread in its order")
    losses = problem.loss.ours(rows, target, reduction="none")
    assert losses.placements == tuple(placements)
    assert_same(losses.full_tensor(), problem.loss.torchs(problem.input, problem.target, reduction="none"))


# Errors


@case
def a_wrong_target_on_one_rank(rank: int) -> None:
    """Its rank says so; the others hear of it, and the next call is served."""
    num_ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (num_ranks,))
    problem = problems(2 * num_ranks)[0]
    wrong = problem.target.clone()
    wrong[3] = 5  # on rank 1
    for reduction in ("mean", "sum"):
        arguments = [spread(x, mesh, [Shard(0)]) for x in (problem.input, wrong)]
        error = raised(
            lambda arguments=arguments, reduction=reduction: CROSS_ENTROPY.ours(*arguments, reduction=reduction)
        )
        if rank == 1:
            assert error == (IndexError, "Target 5 is out of bounds.")
        else:
            assert error == (RuntimeError, "rank 1 raised an error in this call")
        check_rows(problem, mesh, [Shard(0)], reduction)
    arguments = [spread(x, mesh, [Replicate()]) for x in (problem.input, wrong)]
    assert raised(lambda: CROSS_ENTROPY.ours(*arguments))[0] is IndexError


@case_of(2)
def a_wrong_target_on_one_rank_of_a_gpus_mesh(rank: int) -> None:
    """Whose hosts do not wait to hear of it: the other ranks have a loss of NaN."""
    mesh = init_device_mesh("cpu", (2,))
    problem = problems(4)[0]
    problem.target[3] = 5  # on rank 1
    arguments = [spread(x, mesh, [Shard(0)]) for x in (problem.input, problem.target)]
    with mock.patch.object(sum_over_rows, "reads_at_once", lambda reduced: False):
        if rank == 1:
            assert raised(lambda: CROSS_ENTROPY.ours(*arguments))[0] is IndexError
        else:
            assert CROSS_ENTROPY.ours(*arguments).to_local().isnan()


@case_of(4)
def a_wrong_target_beside_spread_classes(rank: int) -> None:
    """Both ranks that have its row raise it, and those of the other rows do not wait."""
    mesh = init_device_mesh("cpu", (2, 2))
    logits, target = torch.randn(4, 6), torch.tensor([1, 2, 6, 3])
    arguments = spread(logits, mesh, [Shard(0), Shard(1)]), spread(target, mesh, [Shard(0), Replicate()])
    errors = of_all_ranks(raised(lambda: CROSS_ENTROPY.ours(*arguments)))
    assert [error[0] for error in errors] == [RuntimeError, RuntimeError, IndexError, IndexError]


@case_of(2)
def a_compiled_graph_leaves_dtensors_to_torch(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    problem = problems(4)[0]
    arguments = [spread(x, mesh, [Shard(0)]) for x in (problem.input, problem.target)]
    fused_losses.routes(reset=True)
    compiled = torch.compile(lambda x, y: CROSS_ENTROPY.ours(x * 2, y, reduction="sum"), backend="aot_eager")
    assert_same(
        compiled(*arguments).full_tensor(), CROSS_ENTROPY.torchs(problem.input * 2, problem.target, reduction="sum")
    )
    assert set(fused_losses.routes()["cross_entropy"]) == {"torch: a graph cannot hold the call"}
