"""What a loss costs, apart from the model it trains, and what a whole step does: time in every step, memory in one."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

import fused_losses
from examples.program import Loss, Output


@dataclass(frozen=True)
class LossStep:
    """One forward and backward of the loss alone."""

    loss: float
    output_grads: tuple[Tensor, ...]
    """The gradients of the loss with respect to the model's output, for :func:`torch.autograd.backward`."""
    seconds: float


def tensors_of(output: Output) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def leaves_of(output: Output) -> Output:
    """Leaves that share the output's memory, so that the model's own backward is no part of the loss's."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors_of(output))
    return leaves if isinstance(output, tuple) else leaves[0]


def timed_loss_step(loss: Loss, output: Output, target: Tensor) -> LossStep:
    """The model's backward, which is the same for both losses, is not in the time."""
    leaves = leaves_of(output)
    started = perf_counter()
    value = loss(leaves, target)
    output_grads = torch.autograd.grad(value, tensors_of(leaves))
    seconds = perf_counter() - started
    return LossStep(value.item(), output_grads, seconds)


@dataclass(frozen=True)
class Memory:
    """What was asked of torch's allocator."""

    peak_bytes: int
    """The most that was held at one time on top of what was there before; results are part of it."""
    ran_fused: bool
    """Whether an operator of fused_losses was among those that ran: a comparison of torch with torch would pass."""


def loss_memory(loss: Loss, output: Output, target: Tensor) -> Memory:
    """Of one forward and backward of the loss alone, beyond the output and the target; with the gradients."""
    leaves = leaves_of(output)
    return memory_of(lambda: torch.autograd.grad(loss(leaves, target), tensors_of(leaves)))


def memory_of(call: Callable[[], object]) -> Memory:
    """Adds up the allocations and releases that torch's profiler recorded, in the order of time. The profiler does not
    see memory that fused_losses keeps for the next gradient, so nothing is kept meanwhile."""
    with (
        fused_losses.limited_gradient_pool(0),
        torch.autograd.profiler.profile(profile_memory=True) as profiler,
    ):
        call()
    recorded = profiler.kineto_results
    assert recorded is not None
    held_bytes = peak_bytes = 0
    ran_fused = False
    for event in sorted(recorded.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held_bytes += event.nbytes()
            peak_bytes = max(peak_bytes, held_bytes)
        ran_fused |= event.name().startswith("fused_losses::")
    return Memory(peak_bytes, ran_fused)
