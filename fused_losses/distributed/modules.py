"""The losses of this package as modules; options that are tensors of this rank's classes are buffers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..tokens import TokenStatistics
from .linear import vocab_parallel_linear_cross_entropy
from .losses import vocab_parallel_cross_entropy, vocab_parallel_token_statistics

__all__ = ["VocabParallelCrossEntropyLoss", "VocabParallelLinearCrossEntropyLoss", "VocabParallelTokenStatistics"]


_OWN = {"group", "weight", "linear_bias", "token_weight"}  # of the constructor or of the call


class _WithOptions(nn.Module):
    """Keeps the options of a function, whose names and defaults are the function's, and so are checks of values."""

    weight: Tensor | None

    def __init__(
        self,
        function: Callable[..., Any],
        group: dist.ProcessGroup | None,
        weight: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        parameters = inspect.signature(function).parameters.values()
        known = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} - _OWN
        if unknown := sorted(options.keys() - known):
            raise TypeError(f"{type(self).__name__} has no option {', '.join(unknown)}, but {', '.join(sorted(known))}")
        self.group = group
        self.register_buffer("weight", weight)
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class VocabParallelCrossEntropyLoss(_WithOptions):
    """:func:`vocab_parallel_cross_entropy` as a module; ``token_weight`` goes with the call.

    Example::

        >>> VocabParallelCrossEntropyLoss(label_smoothing=0.1, softcap=30.0)
        VocabParallelCrossEntropyLoss(label_smoothing=0.1, softcap=30.0)

    Args:
        weight: one weight for each of this rank's classes.
        group: the ranks; the default process group if ``None``.
        options: as of the function.
    """

    def __init__(self, weight: Tensor | None = None, *, group: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(vocab_parallel_cross_entropy, group, weight, options)

    def forward(self, logits: Tensor, target: Tensor, token_weight: Tensor | None = None) -> Tensor:
        return vocab_parallel_cross_entropy(
            logits, target, group=self.group, weight=self.weight, token_weight=token_weight, **self.options
        )


class VocabParallelLinearCrossEntropyLoss(_WithOptions):
    """:func:`vocab_parallel_linear_cross_entropy` as a module, which is given the layer's weight as the function is.

    Example::

        >>> VocabParallelLinearCrossEntropyLoss(reduction="sum")
        VocabParallelLinearCrossEntropyLoss(reduction='sum')

    Args:
        weight: one weight for each of this rank's classes.
        group: the ranks; the default process group if ``None``.
        options: as of the function.
    """

    def __init__(self, weight: Tensor | None = None, *, group: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(vocab_parallel_linear_cross_entropy, group, weight, options)

    def forward(
        self,
        input: Tensor,
        linear_weight_local: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        token_weight: Tensor | None = None,
    ) -> Tensor:
        return vocab_parallel_linear_cross_entropy(
            input,
            linear_weight_local,
            target,
            linear_bias=linear_bias,
            group=self.group,
            weight=self.weight,
            token_weight=token_weight,
            **self.options,
        )


class VocabParallelTokenStatistics(_WithOptions):
    """:func:`vocab_parallel_token_statistics` as a module.

    Example::

        >>> VocabParallelTokenStatistics(softcap=30.0)
        VocabParallelTokenStatistics(softcap=30.0)

    Args:
        group: the ranks; the default process group if ``None``.
        options: as of the function.
    """

    def __init__(self, *, group: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(vocab_parallel_token_statistics, group, None, options)

    def forward(self, logits: Tensor, target: Tensor) -> TokenStatistics:
        return vocab_parallel_token_statistics(logits, target, group=self.group, **self.options)
