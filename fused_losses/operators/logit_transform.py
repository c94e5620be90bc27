"""From logits to what the softmax is taken of, by torch's operators: a scale, or a scale and a softcap.

The kernels': ``csrc/cpu/logit_units.h`` and ``csrc/cuda/logit_transform.h``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .class_axis import accumulation_dtype

__all__ = ["LogitTransform", "refusal_of_scales"]


class LogitTransform(NamedTuple):
    """Of a logit :math:`l` it is :math:`x = s \\tanh(a\\, l / s)`, or :math:`a\\, l`."""

    logit_scale: float
    softcap: float
    """0: none."""

    @property
    def factor(self) -> float:
        """x is this times its unit."""
        return self.softcap or self.logit_scale

    @property
    def sign(self) -> float:
        """Units times this are in the order of x."""
        return -1.0 if self.factor < 0 else 1.0

    def unit(self, logits: Tensor) -> Tensor:
        """The tangent, or the logit itself."""
        return torch.tanh(logits * (self.logit_scale / self.softcap)) if self.softcap else logits

    def derivative(self, unit: Tensor) -> Tensor | float:
        """dx / dl where x has this unit."""
        return (1 - unit) * (1 + unit) * self.logit_scale if self.softcap else self.logit_scale

    def argmax(self, logits: Tensor) -> Tensor:
        """The first of the largest x along the last axis: by the logits, of which a softcap rounds several to one x."""
        return (logits if self.logit_scale > 0 else -logits).argmax(-1)

    def transformed(self, logits: Tensor) -> Tensor:
        unit = self.unit(logits)
        return unit if self.factor == 1 else unit * self.factor


def refusal_of_scales(logits: Tensor, logit_scale: float, softcap: float) -> str | None:
    """Whether the type of computation has no normal number for one of them: the kernels would multiply by 0."""
    info = torch.finfo(accumulation_dtype(logits.dtype))
    scales = (logit_scale, softcap, logit_scale / softcap) if softcap else (logit_scale,)
    if all(info.tiny <= abs(scale) <= info.max for scale in scales):
        return None
    return "logit_scale or softcap is no normal number in the type of computation"
