"""Who is timed: torch eager, torch.compile, fused_losses, the same compiled, and with the gradient over the logits."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor

import fused_losses.functional
from benchmarks.cases import Loss, Scale
from benchmarks.inputs import Inputs
from benchmarks.measure import Task
from benchmarks.results import PASSES, Pass

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Contender:
    """One implementation of the case's loss, as something to time for each pass it takes part in."""

    name: str
    tasks: dict[Pass, Task]


def contenders(
    loss: Loss,
    rotation: Sequence[Inputs],
    *,
    scale: Scale = "none",
    after_log_softmax: bool = False,
    with_compile: bool,
    with_inplace: bool,
) -> list[Contender]:
    """The contenders for a loss; eager, the reference, comes first. What fused_losses does not offer is left out."""
    eager: LossFunction = getattr(torch.nn.functional, loss)
    fused: LossFunction | None = getattr(fused_losses.functional, loss, None)
    if after_log_softmax:
        eager, fused = _after_log_softmax(eager), fused and _after_log_softmax(fused)
    entries = [preserving_contender("eager", scaled(eager, scale), rotation)]
    if with_compile:
        entries.append(preserving_contender("compile", scaled(_compiled(eager), scale), rotation))

    if fused is not None:
        entries.append(preserving_contender("fused", scaled(fused, scale), rotation))
        if with_compile:
            entries.append(preserving_contender("fused compiled", scaled(_compiled(fused), scale), rotation))
        if with_inplace and "inplace_gradient" in inspect.signature(fused).parameters:
            inplace = scaled(partial(fused, inplace_gradient=True), scale)
            entries.append(overwriting_contender("fused in-place", inplace, rotation, ("forward_backward",)))
    return entries


def _after_log_softmax(function: LossFunction) -> LossFunction:
    def loss_of(logits: Tensor, *args: Any, **options: Any) -> Tensor:
        return function(torch.nn.functional.log_softmax(logits, 1), *args, **options)

    return loss_of


def scaled(function: LossFunction, scale: Scale) -> LossFunction:
    """The loss times what the case multiplies it by; each contender counts for itself."""
    if scale == "none":
        return function
    steps = itertools.count(3)

    def scaled_loss(*args: Any, **options: Any) -> Tensor:
        return function(*args, **options) / (3 if scale == "constant" else next(steps))

    return scaled_loss


def _compiled(function: LossFunction) -> LossFunction:
    # torch.compile does not look into torch.nn.functional itself, only into callers of it.
    def loss_of(*args: Any, **options: Any) -> Tensor:
        return function(*args, **options)

    return torch.compile(loss_of, fullgraph=True, dynamic=False)


def _bind(function: LossFunction, inputs: Inputs) -> LossFunction:
    """The loss as a function of the logits alone, the same Python around every contender."""
    target, options = inputs.target, inputs.options

    def loss_of(logits: Tensor) -> Tensor:
        return function(logits, target, **options)

    return loss_of


def preserving_contender(name: str, function: LossFunction, rotation: Sequence[Inputs]) -> Contender:
    """One that leaves the logits as they are."""

    def forget_gradients() -> None:
        for inputs in rotation:
            inputs.logits.grad = None

    pairs = [(_bind(function, inputs), inputs) for inputs in rotation]
    forward = Task([_forward(loss_of, inputs.logits.detach()) for loss_of, inputs in pairs])
    # Returning hundreds of MB of the last gradient to the system is no part of this step, hence `before_sample`.
    step = Task([_forward_backward(loss_of, inputs.logits) for loss_of, inputs in pairs], forget_gradients)
    return Contender(name, {"forward": forward, "forward_backward": step})


def _forward(loss_of: LossFunction, logits: Tensor) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return loss_of(logits)

    return forward


def _forward_backward(loss_of: LossFunction, logits: Tensor) -> Callable[[], Any]:
    def forward_backward() -> tuple[Tensor, Tensor | None]:
        logits.grad = None
        loss = loss_of(logits)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, logits.grad

    return forward_backward


def overwriting_contender(
    name: str, function: LossFunction, rotation: Sequence[Inputs], passes: Sequence[Pass] = PASSES
) -> Contender:
    """One that destroys the logits in these passes, for one with the gradient that takes their place."""
    # Every call needs new logits, and only a non-leaf can give them up. They are cloned outside the timed region, as
    # the layer before the loss would have made them anyway.
    copies: list[Tensor] = []

    def renew_logits() -> None:
        copies.clear()  # first, so that two copies never stand in memory together
        copies.extend(inputs.logits.clone() for inputs in rotation)

    def forward(index: int, loss_of: LossFunction) -> Tensor:
        with torch.no_grad():
            return loss_of(copies[index])

    def forward_backward(index: int, loss_of: LossFunction) -> tuple[Tensor, Tensor]:
        loss = loss_of(copies[index])
        # Asked for by name: `.backward()` would go on to the leaf and might copy the gradient there.
        (gradient,) = torch.autograd.grad(loss, copies[index])
        return loss, gradient

    losses = [_bind(function, inputs) for inputs in rotation]
    steps: dict[Pass, Callable[[int, LossFunction], object]] = {
        "forward": forward,
        "forward_backward": forward_backward,
    }
    return Contender(
        name,
        {
            which: Task([partial(steps[which], *pair) for pair in enumerate(losses)], renew_logits, each_call_once=True)
            for which in passes
        },
    )
