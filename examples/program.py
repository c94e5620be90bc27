"""What an example states about itself: model, data, optimizer, and the loss before and after the change of one line."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Output = Tensor | tuple[Tensor, ...]
"""What a model returns: the loss's input, or all tensors that the loss is to be differentiated by."""

Loss = Callable[[Any, Tensor], Tensor]
"""Takes what the model returned and the target, returns a scalar: a torch module or a plain function."""

Batch = tuple[Tensor, Tensor]
"""Inputs and target."""


@dataclass(frozen=True)
class Program:
    """One training, to be run with torch's loss and with the fused one."""

    name: str
    """The module's name in this folder, and the stem of the files written."""
    title: str
    """What is learnt from what, with which loss, in a line."""
    model: nn.Module
    """Freshly initialised; every run trains a copy of it, so all start from the same weights."""
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    batches: Sequence[Batch]
    """One per training step, in order: every run sees the same ones."""
    torch_loss: Loss
    fused_loss: Loss
    score_name: str
    score: Callable[[nn.Module], float]
    """What the trained model is worth on data it has not seen."""
    fused_context: Callable[[], AbstractContextManager[object]] = nullcontext
    """What the fused run is wrapped in; `fused_losses.patched` where torch's own functions are replaced."""
