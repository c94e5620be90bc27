"""What a loss costs, apart from the model it trains: its time in every step, its memory in one."""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

import fused_losses
from examples.program import Loss


@dataclass(frozen=True)
class LossStep:
    """One forward and backward of the loss alone."""

    loss: float
    output_grad: Tensor
    """The gradient of the loss with respect to the model's output: hand it to `output.backward`."""
    seconds: float


def timed_loss_step(loss: Loss, output: Tensor, target: Tensor) -> LossStep:
    """Runs the loss and its backward on a leaf that shares the output's memory, so that the model's own backward,
    which is the same for both losses, is not in the time."""
    leaf = output.detach().requires_grad_()
    started = perf_counter()
    value = loss(leaf, target)
    (output_grad,) = torch.autograd.grad(value, leaf)
    seconds = perf_counter() - started
    return LossStep(value.item(), output_grad, seconds)


@dataclass(frozen=True)
class LossMemory:
    """What one forward and backward of the loss alone asked of torch's allocator."""

    peak_bytes: int
    """The most that was held at one time on top of the output and the target; the gradient, which has the
    output's size, is part of it."""
    ran_fused: bool
    """Whether an operator of fused_losses was among those that ran: a comparison of torch with torch would pass."""


def loss_memory(loss: Loss, output: Tensor, target: Tensor) -> LossMemory:
    """Adds up the allocations and releases that torch's profiler recorded, in the order of time. The profiler does not
    see memory that fused_losses keeps for the next gradient, so nothing is kept meanwhile."""
    leaf = output.detach().requires_grad_()
    with (
        fused_losses.limited_gradient_pool(0),
        torch.autograd.profiler.profile(profile_memory=True) as profiler,
    ):
        torch.autograd.grad(loss(leaf, target), leaf)
    recorded = profiler.kineto_results
    assert recorded is not None
    held_bytes = peak_bytes = 0
    ran_fused = False
    for event in sorted(recorded.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held_bytes += event.nbytes()
            peak_bytes = max(peak_bytes, held_bytes)
        ran_fused |= event.name().startswith("fused_losses::")
    return LossMemory(peak_bytes, ran_fused)
