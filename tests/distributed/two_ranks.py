"""What two processes compute together: each case runs on both ranks, compares ours with torch's, and raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from losses import CROSS_ENTROPY, LOSSES, NLL_LOSS, REDUCTIONS, Loss, sample
from ranks import run_cases
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import fused_losses

NUM_RANKS = 2
FEW_ROUNDINGS = 32 * torch.finfo(torch.float32).eps
SENT_MODULES = "modules sent to spawned processes"

CASES: dict[str, Callable[[int, DeviceMesh], None]] = {}


def case(name: str, values: Iterable[Any] = ("",)) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A case, or one for each of the values."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for value in values:
            if value == "":
                CASES[name] = function
            else:
                CASES[f"{name}, {value}"] = lambda rank, mesh, value=value: function(rank, mesh, value)
        return function

    return add


def run(rank: int, num_ranks: int, directory: Path, criteria: list[torch.nn.Module], expected: list[float]) -> None:
    """On one rank: the cases, and the losses of the modules that were sent here."""

    def sent_modules(rank: int, mesh: DeviceMesh) -> None:
        torch.manual_seed(0)
        assert [
            criterion(*sample(loss, (6, 5))).item() for loss, criterion in zip(LOSSES, criteria, strict=True)
        ] == expected

    cases = {**CASES, SENT_MODULES: sent_modules}
    run_cases(rank, num_ranks, directory, cases, lambda rank: (rank, init_device_mesh("cpu", (num_ranks,))))


# What the cases share


def kernels_reached(loss: Loss) -> int:
    return fused_losses.routes().get(loss.name, {}).get("kernel", 0)


def assert_same(ours: Any, torchs: Any) -> None:
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def layers() -> list[torch.nn.Module]:
    torch.manual_seed(3)
    return [torch.nn.Linear(12, 6), torch.nn.Linear(6, 4)]


def problem(loss: Loss, seed: int, num_rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(num_rows, 12), sample(loss, (num_rows, 4))[1]


def criterion_of(loss: Loss, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Of the output of a layer."""
    if loss.name == "binary_cross_entropy":
        return lambda output, target: function(output.sigmoid(), target)
    return function


def trained(loss: Loss, rank: int, parallelize: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    """Two layers, made parallel, and a loss on each rank's own rows: the parameters after a step."""
    results = []
    for function in (loss.ours, loss.torchs):
        model = parallelize(torch.nn.Sequential(*layers()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        fused_losses.routes(reset=True)
        features, target = problem(loss, rank)
        value = criterion_of(loss, function)(model(features), target)
        value.backward()
        optimizer.step()
        assert kernels_reached(loss) == (function is loss.ours)
        parameters = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        results.append([value.detach(), *(p.detach() for p in parameters)])
    assert_same(*results)


# Data-parallel and sharded models


@case("DistributedDataParallel", LOSSES)
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    trained(loss, rank, DistributedDataParallel)


@case("fully_shard", LOSSES)
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    def parallelize(model: torch.nn.Module) -> torch.nn.Module:
        for layer in model:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    trained(loss, rank, parallelize)


@case("fully_shard in mixed precision")
def _(rank: int, mesh: DeviceMesh) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    trained(CROSS_ENTROPY, rank, lambda model: fully_shard(model, mesh=mesh, mp_policy=policy))


@case("pipeline stages", LOSSES)
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    """The last stage's backward starts at the loss, the stages before it get gradients sent."""
    results = []
    for function in (loss.ours, loss.torchs):
        layer = layers()[rank]
        stage = PipelineStage(layer, rank, NUM_RANKS, torch.device("cpu"))
        schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=criterion_of(loss, function))
        features, target = problem(loss, 5, num_rows=16)
        losses: list[torch.Tensor] = []
        fused_losses.routes(reset=True)
        if rank == 0:
            schedule.step(features)
        else:
            schedule.step(target=target, losses=losses)
            assert (kernels_reached(loss) >= len(losses) == 4) == (function is loss.ours)
        results.append([*(value.detach() for value in losses), *(p.grad for p in layer.parameters())])
    assert_same(*results)


# The result of a collective that may still be under way


def gathered(input: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    wrapper = collectives.all_gather_tensor(input, 0, mesh)
    assert isinstance(wrapper, collectives.AsyncCollectiveTensor)
    return wrapper


@case("logits of a tensor-parallel layer", [loss for loss in LOSSES if loss.name != "binary_cross_entropy"])
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    results = []
    for function in (loss.ours, loss.torchs):
        model = torch.nn.Sequential(*layers())
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
        features, target = problem(loss, 5)
        fused_losses.routes(reset=True)
        output = model(features)
        assert isinstance(output, collectives.AsyncCollectiveTensor)
        value = function(output, target)
        value.backward()
        assert kernels_reached(loss) == (function is loss.ours)
        results.append([value.detach(), *(p.grad.full_tensor() for p in model.parameters())])
    assert_same(*results)


@case("a collective under way", LOSSES)
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    torch.manual_seed(7)
    input, target = sample(loss, (8, 5))
    own_rows = input[4 * rank : 4 * rank + 4]
    for reduction in REDUCTIONS:
        leaf = input.clone().requires_grad_()
        expected = loss.torchs(leaf, target, reduction=reduction)
        expected.sum().backward()
        wrapper = gathered(own_rows, mesh).requires_grad_()
        assert fused_losses.explain(loss.ours, wrapper, target).startswith("kernel")
        fused_losses.routes(reset=True)
        value = loss.ours(wrapper, target, reduction=reduction)
        value.sum().backward()
        assert type(value) is type(wrapper.grad) is torch.Tensor
        assert_same((value.detach(), wrapper.grad), (expected.detach(), leaf.grad))
        with torch.no_grad():
            assert_same(loss.ours(gathered(own_rows, mesh), target, reduction=reduction), expected.detach())
        assert kernels_reached(loss) == 2


@case("a collective under way, in torch.func")
def _(rank: int, mesh: DeviceMesh) -> None:
    torch.manual_seed(7)
    input, target = sample(CROSS_ENTROPY, (8, 5))
    gradients = [
        torch.func.grad(lambda scale, x=x: CROSS_ENTROPY.ours(scale * x, target))(torch.tensor(2.0))
        for x in (input, gathered(input[4 * rank : 4 * rank + 4], mesh))
    ]
    assert_same(*gradients)
    per_sample = torch.func.vmap(CROSS_ENTROPY.ours)
    assert_same(per_sample(gathered(input[4 * rank : 4 * rank + 4], mesh), target), per_sample(input, target))


@case("a collective under way and inplace_gradient", [CROSS_ENTROPY, LOSSES[-1]])
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    """Its memory has another version counter than the wrapper, so nothing is written over it."""
    input, target = problem(loss, 5)
    input = input[:, :4].contiguous()
    wrapper = gathered(input[4 * rank : 4 * rank + 4], mesh).requires_grad_()
    loss.ours(wrapper, target, inplace_gradient=True).backward()
    assert torch.equal(wrapper.detach(), input)


# Distributed tensors: dtensor_rows_cases.py has more

PLACEMENTS = {"replicated": [Replicate()], "sharded by rows": [Shard(0)], "sharded by classes": [Shard(1)]}


@case("DTensor", LOSSES)
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    """As one process, whoever computes: of torch's own functions not every gradient is."""
    torch.manual_seed(9)
    input, target = sample(loss, (8, 6))
    for name, placements in PLACEMENTS.items():
        by_classes = name == "sharded by classes"
        target_placements = PLACEMENTS["replicated"] if by_classes and loss.by_class else placements
        for reduction in REDUCTIONS:
            whole = input.clone().requires_grad_()
            expected = loss.torchs(whole, target, reduction=reduction)
            expected.sum().backward()
            for is_patched in (False, True):
                leaf = distribute_tensor(input, mesh, placements).requires_grad_()
                with fused_losses.patched():
                    function = getattr(torch.nn.functional, loss.name) if is_patched else loss.ours
                    value = function(leaf, distribute_tensor(target, mesh, target_placements), reduction=reduction)
                    value.full_tensor().sum().backward()
                assert_same(value.full_tensor().detach(), expected.detach())
                assert_same(leaf.grad.full_tensor(), whole.grad)


@case("loss_parallel")
def _(rank: int, mesh: DeviceMesh) -> None:
    torch.manual_seed(9)
    input, target = sample(CROSS_ENTROPY, (8, 6))
    whole = input.clone().requires_grad_()
    CROSS_ENTROPY.torchs(whole, target).backward()
    leaf = distribute_tensor(input, mesh, [Shard(1)]).requires_grad_()
    with loss_parallel():
        CROSS_ENTROPY.ours(leaf, distribute_tensor(target, mesh, [Replicate()])).backward()
    assert leaf.grad.placements == (Shard(1),)
    assert_same(leaf.grad.full_tensor(), whole.grad)


@case("a DTensor beside a plain tensor", [CROSS_ENTROPY, NLL_LOSS])
def _(rank: int, mesh: DeviceMesh, loss: Loss) -> None:
    input, target = problem(loss, 5)
    messages = []
    for function in (loss.ours, loss.torchs):
        try:
            function(distribute_tensor(input, mesh, [Replicate()]), target)
        except RuntimeError as error:
            messages.append(str(error))
    assert len(messages) == 2
    assert messages[0] == messages[1]
