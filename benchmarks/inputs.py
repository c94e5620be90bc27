"""Makes the tensors of a case."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.device import Device

# Where so many do not reach `cold_bytes`, the cost of a call is what is timed and caches do not matter.
MAX_INPUTS = 256
CONFIDENT_LOGIT = 16.0


@dataclass(frozen=True)
class Inputs:
    """What a loss is called with. `logits` is the tensor that gets a gradient, whatever the loss calls it."""

    logits: Tensor
    target: Tensor
    options: dict[str, Tensor | float] = field(default_factory=dict)

    @property
    def logits_bytes(self) -> int:
        return self.logits.numel() * self.logits.element_size()


def build(case: Case, device: str, seed: int = 0) -> Inputs:
    """Random inputs, the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    logits = torch.randn(case.shape, dtype=dtype, device=device, generator=generator)
    if case.takes_log_probabilities:
        logits = torch.log_softmax(logits, 1)
    elif case.loss == "binary_cross_entropy":
        logits = torch.sigmoid(logits)
    if case.layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)

    target = _target(case, logits, generator)
    _set_values(case, logits, target, generator)
    options: dict[str, Tensor | float] = {}
    if case.class_weight:
        options["weight"] = torch.rand(case.shape[1], dtype=dtype, device=device, generator=generator) + 0.5
    if case.pos_weight:
        options["pos_weight"] = torch.rand(case.shape[-1], dtype=dtype, device=device, generator=generator) + 0.5
    if case.label_smoothing:
        options["label_smoothing"] = case.label_smoothing
    return Inputs(logits.requires_grad_(), target, options)


def _set_values(case: Case, logits: Tensor, target: Tensor, generator: torch.Generator) -> None:
    if case.values == "random":
        return
    if case.values == "confident":  # the target has a probability of 0.99 among 32000 classes
        logits.scatter_(1, target.unsqueeze(1), CONFIDENT_LOGIT)
        return
    masked = torch.rand(logits.shape, generator=generator, device=logits.device) < 1 / 3
    if not case.target_is_elementwise:
        masked.scatter_(1, target.unsqueeze(1), False)
    logits.masked_fill_(masked, {"masked-100": -100.0, "masked-1e4": -1e4, "masked-inf": -math.inf}[case.values])


def _target(case: Case, logits: Tensor, generator: torch.Generator) -> Tensor:
    if case.loss.startswith("binary"):
        return torch.empty_like(logits, requires_grad=False).bernoulli_(0.5, generator=generator)
    if case.probability_target:
        return torch.softmax(torch.empty_like(logits, requires_grad=False).normal_(generator=generator), 1)
    index_shape = (case.shape[0], *case.shape[2:])
    return torch.randint(case.shape[1], index_shape, device=logits.device, generator=generator)


def build_rotation(case: Case, device: Device) -> list[Inputs]:
    """The inputs to call with in turn, together `device.cold_bytes` large: Note [Cold caches] in `cuda_device.py`."""
    first = build(case, device.tensors)
    count = min(MAX_INPUTS, math.ceil(device.cold_bytes / first.logits_bytes))
    return [first, *(build(case, device.tensors, seed) for seed in range(1, count))]
