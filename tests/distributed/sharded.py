"""A vocabulary that is spread over ranks, beside one process and torch: what the cases share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from parity import assert_not_less_exact
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

IGNORED = -100


def transformed(logits: Tensor, logit_scale: float, softcap: float | None) -> Tensor:
    x = logits * logit_scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def reduced(losses: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    counts = target != ignore_index
    denominator = counts.sum() if weight is None else torch.where(counts, weight[target.where(counts, 0)], 0).sum()
    return losses.sum() / denominator


def torchs_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    logit_scale: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    token_weight: Tensor | None = None,
) -> Tensor:
    """Of all classes, in the type of the logits, by torch's operators."""
    x, target = transformed(logits, logit_scale, softcap), target.long()
    rows, flat = x.reshape(-1, x.size(-1)), target.reshape(-1)
    losses = F.cross_entropy(
        rows, flat, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    ).view(target.shape)
    counts = target != ignore_index
    if lse_square_scale:
        losses = losses + torch.where(counts, lse_square_scale * x.logsumexp(-1).square(), 0)
    if token_weight is not None:
        losses = losses * token_weight
    return reduced(losses, target, weight, ignore_index, reduction)


def terms_of_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    logit_scale: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    token_weight: Tensor | None = None,
) -> Tensor:
    """The magnitudes that add up to the loss, each log-probability at least 1: see tests/reference.py."""
    x, target = transformed(logits, logit_scale, softcap), target.long()
    counts = target != ignore_index
    terms = x.log_softmax(-1).abs().clamp(min=1) * (1 if weight is None else weight)
    of_target = terms.gather(-1, target.where(counts, 0).unsqueeze(-1)).squeeze(-1)
    losses = of_target * (1 - label_smoothing)
    if label_smoothing:
        losses = losses + terms.mean(-1) * label_smoothing
    if lse_square_scale:
        losses = losses + lse_square_scale * x.logsumexp(-1).square()
    losses = torch.where(counts, losses, 0) * (1 if token_weight is None else token_weight.abs())
    return reduced(losses, target, weight, ignore_index, reduction)


@dataclass(frozen=True)
class Shards:
    """How many classes each rank has."""

    sizes: tuple[int, ...]
    rank: int

    @property
    def num_classes(self) -> int:
        return sum(self.sizes)

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    @property
    def mine(self) -> slice:
        return slice(self.start, self.start + self.sizes[self.rank])


def layouts(rank: int) -> list[Shards]:
    """Even, uneven, with an empty shard at either end, all on one rank."""
    ranks = dist.get_world_size()
    uneven = tuple(3 + 7 * (other % 3) for other in range(ranks))
    sizes = [(8,) * ranks, uneven, (0, *uneven[1:]), (*uneven[:-1], 0), (*(0,) * (ranks - 1), 13)]
    return [Shards(each, rank) for each in sizes]


def outcome(
    function: Callable[..., Tensor], logits: Tensor, target: Tensor, grad_output: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, target, **options)
    loss.backward(torch.ones_like(loss) if grad_output is None else grad_output.to(loss.dtype))
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def part_of(options: dict[str, Any], shards: Shards) -> dict[str, Any]:
    """What a rank is given of the options of all classes."""
    weight = options.get("weight")
    return options if weight is None else {**options, "weight": weight[shards.mine]}


def in_type(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in options.items()}


def check(
    ours: Callable[..., Tensor],
    logits: Tensor,
    target: Tensor,
    shards: Shards,
    grad_output: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a rank no less exact than torch's of one process, in the type of computation."""
    computation = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss, gradient = outcome(ours, logits[..., shards.mine], target, grad_output, **part_of(options, shards))
    torchs, torchs_gradient = outcome(
        torchs_loss, logits.to(computation), target, grad_output, **in_type(options, computation)
    )
    reference, reference_gradient = outcome(
        torchs_loss, logits.double(), target, grad_output, **in_type(options, torch.float64)
    )
    assert loss.dtype == computation and loss.shape == torchs.shape and gradient.dtype == logits.dtype
    terms = terms_of_loss(logits.double(), target, **in_type(options, torch.float64))
    assert_not_less_exact(loss, torchs, reference, terms=terms, what="loss")
    if gradient.numel():
        whole = reference_gradient[reference_gradient.isfinite()].abs()
        terms = whole.amax() if whole.numel() else torch.zeros((), dtype=torch.float64)
        mine = (torchs_gradient[..., shards.mine], reference_gradient[..., shards.mine])
        assert_not_less_exact(gradient, *mine, terms=terms, what="gradient")
    return loss, gradient


def raised(function: Callable[[], Any]) -> tuple[type[Exception], str]:
    try:
        function()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("nothing was raised")


def of_all_ranks(mine: Any) -> list[Any]:
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


@contextmanager
def counted_collectives():
    """The reductions that are begun, each as its operation, its number of elements and its bytes."""
    calls: list[tuple[str, int, int]] = []
    all_reduce = dist.all_reduce

    def counting(tensor: Tensor, op: Any = dist.ReduceOp.SUM, *arguments: Any, **options: Any) -> Any:
        calls.append((str(op).rpartition(".")[2], tensor.numel(), tensor.numel() * tensor.element_size()))
        return all_reduce(tensor, op, *arguments, **options)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("logits are gathered")

    names = ("all_gather", "all_gather_into_tensor", "all_to_all", "broadcast", "all_gather_object")
    with mock.patch.object(dist, "all_reduce", counting), mock.patch.multiple(dist, **dict.fromkeys(names, refuse)):
        yield calls


class LargeTensors(TorchDispatchMode):
    """How many new tensors operators make of at least so many elements."""

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        self.num_elements = num_elements
        self.made: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Sequence[Any] = (), options: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)}
        results = function(*arguments, **(options or {}))
        for result in tree_leaves(results):
            is_large = isinstance(result, Tensor) and result.numel() >= self.num_elements
            if is_large and result.untyped_storage().data_ptr() not in given:
                self.made.append(str(function))
        return results
