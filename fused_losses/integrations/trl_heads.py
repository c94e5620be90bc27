"""The function of TRL's heads without logits, in its arguments, from the fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ..functional import linear_token_statistics
from ..operators.linear_cross_entropy import autocast_is_off

__all__ = ["head_function"]

_ANSWERED = {"log_probs", "entropy", "mean_logits", "is_top1"}


def head_function(stock: Any) -> Any:
    """What stands for TRL's ``ChunkedLogProbFunction``.

    Args:
        stock: that class. It serves where something else is asked for: the sum of squared probabilities, the mean of
            capped logits, logits times 0, a weight that DeepSpeed gathers anew for the backward.
    """

    class ChunkedLogProbFunction:
        """See :func:`fused_losses.functional.linear_token_statistics`."""

        @staticmethod
        def apply(
            hidden: Tensor,
            weight: Tensor,
            bias: Tensor | None,
            targets: Tensor,
            temperature: float,
            chunk_size: int,
            final_logit_softcapping: float | None = None,
            logit_scale: float = 1.0,
            outputs: Collection[str] = ("log_sum_sq_probs",),
        ) -> Any:
            softcap = final_logit_softcapping
            if (
                not _ANSWERED.issuperset(outputs)
                or ("mean_logits" in outputs and softcap is not None)
                or logit_scale == 0
                or hasattr(weight, "ds_id")
            ):
                options = (temperature, chunk_size, softcap, logit_scale, outputs)
                return stock.apply(hidden, weight, bias, targets, *options)
            # TRL caps first, and divides by the temperature then.
            scale = logit_scale / temperature
            statistics = linear_token_statistics(
                hidden,
                _of_its_type(weight, hidden),
                targets,
                linear_bias=None if bias is None else _of_its_type(bias, hidden),
                logit_scale=scale,
                softcap=None if softcap is None else softcap / temperature,
            )
            asked: dict[str, Callable[[], Tensor]] = {
                "entropy": lambda: statistics.entropy.float(),
                "mean_logits": lambda: scale * _mean_logits(hidden.detach(), weight.detach(), bias),
                "is_top1": lambda: statistics.argmax == targets,
            }
            entropy, mean_logits, is_top1 = (value() if name in outputs else None for name, value in asked.items())
            return statistics.log_prob.float(), entropy, None, mean_logits, is_top1

    return ChunkedLogProbFunction


def _of_its_type(parameter: Tensor, hidden: Tensor) -> Tensor:
    return parameter if torch.is_autocast_enabled(hidden.device.type) else parameter.to(hidden.dtype)


def _mean_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of each row: its product with the mean of the classes' weights, in float32 under autocast too."""
    with autocast_is_off(hidden.device.type):
        means = hidden.float() @ weight.mean(0, dtype=torch.float32)
    return means if bias is None else means + bias.detach().mean(dtype=torch.float32)
