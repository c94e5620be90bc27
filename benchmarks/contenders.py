"""Who is timed: torch eager, torch.compile, fused_losses, and fused_losses writing the gradient over the logits."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor

import fused_losses.functional
from benchmarks.cases import Loss
from benchmarks.inputs import Inputs
from benchmarks.measure import Task
from benchmarks.results import Pass

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Contender:
    """One implementation of the case's loss, as something to time for each pass it takes part in."""

    name: str
    tasks: dict[Pass, Task]


def contenders(loss: Loss, rotation: Sequence[Inputs], *, with_compile: bool, with_inplace: bool) -> list[Contender]:
    """The contenders for a loss; eager, the reference, comes first. What fused_losses does not offer is left out."""
    eager: LossFunction = getattr(torch.nn.functional, loss)
    entries = [_contender("eager", [_bind(eager, inputs) for inputs in rotation], rotation)]
    if with_compile:
        compiled = _compiled(eager)
        entries.append(_contender("compile", [_bind(compiled, inputs) for inputs in rotation], rotation))

    fused: LossFunction | None = getattr(fused_losses.functional, loss, None)
    if fused is not None:
        entries.append(_contender("fused", [_bind(fused, inputs) for inputs in rotation], rotation))
        if with_inplace and "inplace_gradient" in inspect.signature(fused).parameters:
            entries.append(_inplace_contender(fused, rotation[0]))
    return entries


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


def _contender(name: str, losses: Sequence[LossFunction], rotation: Sequence[Inputs]) -> Contender:
    def forget_gradients() -> None:
        for inputs in rotation:
            inputs.logits.grad = None

    pairs = list(zip(losses, rotation, strict=True))
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


def _inplace_contender(fused: LossFunction, inputs: Inputs) -> Contender:
    # The gradient takes the logits' place, so every call needs new logits, which only a non-leaf can give up. They are
    # cloned outside the timed region, as the layer before the loss would have made them anyway.
    logits: list[Tensor] = []

    def renew_logits() -> None:
        logits.clear()  # first, so that two copies never stand in memory together
        logits.append(inputs.logits.clone())

    def forward_backward() -> tuple[Tensor, Tensor]:
        loss = fused(logits[0], inputs.target, **inputs.options, inplace_gradient=True)
        # Asked for by name: `.backward()` would go on to the leaf and might copy the gradient there.
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss, gradient

    return Contender(
        "fused in-place", {"forward_backward": Task([forward_backward], renew_logits, one_call_per_sample=True)}
    )
