"""Trains one program three times from the same weights on the same batches, and says whether the losses agree.

The runs: torch's loss in float64, torch's loss in float32, the fused loss in float32.

Why three, and what "agree" means. Two correct losses round differently in the last bit, and training feeds such a
difference back into every later step, so the curves of the two float32 runs must drift apart, by an amount that depends
on the model, the optimizer and the number of steps. How much is to be expected is measured, not guessed: the float64
run is the same training with next to no rounding, so its distance to torch's own float32 run is what float32 arithmetic
does to this training. The fused run is one more draw of the same rounding. It may therefore differ from torch's run
by `SAFETY` times that distance: a factor 2 since both runs may stray in opposite directions, and another 2
since the distance of one run is a single draw. One unit of float32 in the loss is always granted: the curves are
float32 numbers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from examples.loss_cost import Memory, loss_memory, memory_of, tensors_of, timed_loss_step
from examples.program import Batch, Loss, Program

SAFETY = 4.0
FLOAT32_UNIT = float(np.finfo(np.float32).eps)

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One training from the first step to the last."""

    curve: Curve
    """The loss at every step."""
    loss_seconds: NDArray[np.float64]
    """The time of the loss part, forward and backward, at every step."""
    whole_seconds: NDArray[np.float64]
    """The time of every step as a whole, with the model and the optimizer."""
    memory: Memory
    whole_memory: Memory
    """Of forward and backward of model and loss, gradients of the parameters included."""
    score: float

    # Medians over the steps: the machine may be busy with something else during some of them.

    @property
    def step_seconds(self) -> float:
        return float(np.median(self.loss_seconds))

    @property
    def whole_step_seconds(self) -> float:
        return float(np.median(self.whole_seconds))


@dataclass(frozen=True)
class Comparison:
    """The three runs of a program, and the verdict."""

    program: Program
    reference: Run
    torch: Run
    fused: Run

    @property
    def difference(self) -> float:
        """The largest difference between the two float32 curves, relative to the loss at that step."""
        return float(relative_difference(self.fused.curve, self.torch.curve).max())

    @property
    def float32_error(self) -> float:
        """The same between torch's float32 run and the float64 one: what rounding alone does to this training."""
        return float(relative_difference(self.torch.curve, self.reference.curve).max())

    @property
    def bound(self) -> float:
        return SAFETY * self.float32_error + FLOAT32_UNIT

    @property
    def agrees(self) -> bool:
        return self.difference <= self.bound

    @property
    def passed(self) -> bool:
        return self.agrees and self.fused.memory.ran_fused and not self.torch.memory.ran_fused


def relative_difference(curve: Curve, other: Curve) -> Curve:
    return np.abs(curve - other) / np.abs(other)


class Training:
    """An ordinary training loop, but for the graph being cut between model and loss so that each is timed alone."""

    def __init__(
        self,
        program: Program,
        loss: Loss,
        dtype: torch.dtype,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.program = program
        self.dtype = dtype
        self.context = context
        self.loss = deepcopy(loss).to(dtype) if isinstance(loss, nn.Module) else loss
        self.model = deepcopy(program.model).to(dtype)
        self.optimizer = program.optimizer(self.model.parameters())
        self.losses: list[float] = []
        self.loss_seconds: list[float] = []
        self.whole_seconds: list[float] = []

    def step(self, batch: Batch) -> None:
        inputs, target = (in_dtype(tensor, self.dtype) for tensor in batch)
        started = perf_counter()
        output = self.model(inputs)
        with self.context():
            step = timed_loss_step(self.loss, output, target)
        self.optimizer.zero_grad()
        torch.autograd.backward(tensors_of(output), step.output_grads)
        self.optimizer.step()
        self.whole_seconds.append(perf_counter() - started)
        self.losses.append(step.loss)
        self.loss_seconds.append(step.seconds)

    def finished(self) -> Run:
        inputs, target = (in_dtype(tensor, self.dtype) for tensor in self.program.batches[-1])
        with self.context():
            memory = loss_memory(self.loss, self.model(inputs), target)
            self.optimizer.zero_grad()
            whole_memory = memory_of(lambda: self.loss(self.model(inputs), target).backward())
        with torch.no_grad():
            score = self.program.score(self.model.eval().float())
        seconds = np.array(self.loss_seconds), np.array(self.whole_seconds)
        return Run(np.array(self.losses), *seconds, memory, whole_memory, score)


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Class indices stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def compare(program: Program, progress: Progress) -> Comparison:
    """Trains in turns, a step of each run at a time, so that whatever else the machine is doing slows all of them."""
    reference = Training(program, program.torch_loss, torch.float64)
    with_torch = Training(program, program.torch_loss, torch.float32)
    with_fused = Training(program, program.fused_loss, torch.float32, program.fused_context)
    for batch in progress.track(program.batches, description=program.name):
        for training in (reference, with_torch, with_fused):
            training.step(batch)
    return Comparison(program, reference.finished(), with_torch.finished(), with_fused.finished())
