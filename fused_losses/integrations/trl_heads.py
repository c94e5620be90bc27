"""The function of TRL's heads without logits, in its arguments, from the fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ..functional import linear_token_statistics
from ..operators.linear_cross_entropy import autocast_is_off

__all__ = ["head_function"]

# What it returns behind the log-probabilities, in this order; None where it is not asked for.
_OPTIONAL = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def head_function(stock: Any) -> Any:
    """What stands for TRL's ``ChunkedLogProbFunction``.

    Args:
        stock: that class. It serves alone for logits times 0 and a weight that DeepSpeed gathers anew for the backward.
            Of what has no gradient it computes what the kernels do not, the sum of squared probabilities and the mean
            of capped logits, beside them: a trainer asks its policy for these, but not the reference, and the two
            have equal log-probabilities, to the bit, only by one way.
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
            layer, options = (hidden, weight, bias), (temperature, chunk_size, softcap, logit_scale)
            if logit_scale == 0 or hasattr(weight, "ds_id"):
                return stock.apply(*layer, targets, *options, outputs)
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
            known: dict[str, Callable[[], Tensor]] = {
                "entropy": lambda: statistics.entropy.float(),
                "is_top1": lambda: statistics.argmax == targets,
            }
            if softcap is None:
                known["mean_logits"] = lambda: scale * _mean_logits(hidden.detach(), weight.detach(), bias)
            values: dict[str, Tensor] = {name: value() for name, value in known.items() if name in outputs}
            others = tuple(name for name in _OPTIONAL if name in outputs and name not in values)
            if others:
                with torch.no_grad():
                    _, *of_stock = stock.apply(*layer, targets, *options, others)
                values |= {name: value for name, value in zip(_OPTIONAL, of_stock, strict=True) if name in others}
            return statistics.log_prob.float(), *(values.get(name) for name in _OPTIONAL)

    return ChunkedLogProbFunction


def _of_its_type(parameter: Tensor, hidden: Tensor) -> Tensor:
    return parameter if torch.is_autocast_enabled(hidden.device.type) else parameter.to(hidden.dtype)


def _mean_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of each row: its product with the mean of the classes' weights, in float32 under autocast too."""
    with autocast_is_off(hidden.device.type):
        means = hidden.float() @ weight.mean(0, dtype=torch.float32)
    return means if bias is None else means + bias.detach().mean(dtype=torch.float32)
