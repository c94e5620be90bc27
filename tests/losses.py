"""The four losses by name: ours, torch's own (taken before anything is patched) and their modules, and small inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import fused_losses
import fused_losses.autograd
import fused_losses.functional


@dataclass(frozen=True)
class Loss:
    name: str
    ours: Callable
    torchs: Callable
    our_module: type
    torch_module: type
    our_function: type
    by_class: bool  # the input has a class axis; otherwise each element is a problem of its own

    def __repr__(self):
        return self.name


def loss_pair(name, module_name, function_name, by_class):
    return Loss(
        name=name,
        ours=getattr(fused_losses.functional, name),
        torchs=getattr(torch.nn.functional, name),
        our_module=getattr(fused_losses, module_name),
        torch_module=getattr(torch.nn, module_name),
        our_function=getattr(fused_losses.autograd, function_name),
        by_class=by_class,
    )


CROSS_ENTROPY = loss_pair("cross_entropy", "CrossEntropyLoss", "CrossEntropyFunction", by_class=True)
NLL_LOSS = loss_pair("nll_loss", "NLLLoss", "NLLLossFunction", by_class=True)
BINARY_CROSS_ENTROPY = loss_pair("binary_cross_entropy", "BCELoss", "BinaryCrossEntropyFunction", by_class=False)
BINARY_CROSS_ENTROPY_WITH_LOGITS = loss_pair(
    "binary_cross_entropy_with_logits", "BCEWithLogitsLoss", "BinaryCrossEntropyWithLogitsFunction", by_class=False
)

CLASS_LOSSES = [CROSS_ENTROPY, NLL_LOSS]
BINARY_LOSSES = [BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS]
LOSSES = CLASS_LOSSES + BINARY_LOSSES
LOSS_BY_NAME = {loss.name: loss for loss in LOSSES}

FLOAT_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "mean", "sum"]


def sample_input(loss, shape, dtype=torch.float32, device="cpu"):
    """Logits of a usual spread (5 standard deviations); probabilities kept away from 0 and 1 in every precision."""
    values = torch.randn(shape, dtype=torch.float64)
    if loss is BINARY_CROSS_ENTROPY:
        values = 0.02 + 0.96 * values.sigmoid()
    elif loss is NLL_LOSS:
        values = values.log_softmax(0 if values.dim() == 1 else 1)
    else:
        values = 5 * values
    return values.to(device=device, dtype=dtype)


def sample_target(loss, shape, dtype=torch.float32, device="cpu"):
    """Class indices for the class losses, soft labels in [0, 1] for the binary ones."""
    if not loss.by_class:
        return torch.rand(shape).to(device=device, dtype=dtype)
    class_dim = 0 if len(shape) == 1 else 1
    without_classes = shape[:class_dim] + shape[class_dim + 1 :]
    return torch.randint(shape[class_dim], without_classes, device=device)


def sample(loss, shape=(7, 5), dtype=torch.float32, device="cpu"):
    return sample_input(loss, shape, dtype, device), sample_target(loss, shape, dtype, device)


def sample_class_probabilities(shape, dtype=torch.float32, device="cpu"):
    """A probability target of cross_entropy: a distribution over the class axis."""
    return torch.randn(shape, dtype=torch.float64).softmax(0 if len(shape) == 1 else 1).to(device=device, dtype=dtype)
