"""The peers, as far as their sources say: the arguments, their defaults, and what is returned."""

import sys
from types import ModuleType

import torch


def reference_losses(logits, target, smoothing):
    return torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")


class OverwriteWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, options):
        with torch.enable_grad():
            own = logits.detach().clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(own, target, **options)
        logits.data.copy_(torch.autograd.grad(loss, own)[0])
        ctx.save_for_backward(logits.detach())
        return loss.detach()

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0] * grad_output, None, None


def liger_cross_entropy(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
    label_smoothing=0.0, lse_square_scale=0.0, softcap=None, return_z_loss=False,
):  # fmt: skip
    return OverwriteWithGradient.apply(input, target, {"weight": weight, "label_smoothing": label_smoothing})


def quack_cross_entropy(
    x, target, lse_partial=None, weight=None, ignore_index=-100, reduction="mean", inplace_backward=False
):
    return torch.nn.functional.cross_entropy(x, target, weight=weight)


def cross_entropy_loss(
    logits, labels, precomputed_lse=None, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0,
    ignore_index=-100, inplace_backward=False, process_group=None,
):  # fmt: skip
    return reference_losses(logits.float(), labels, label_smoothing), torch.zeros(len(labels))


class SoftmaxCrossEntropyLoss:
    @staticmethod
    def apply(logits, labels, smoothing=0.0, padding_idx=0, half_to_float=False):
        assert half_to_float == (logits.dtype in (torch.float16, torch.bfloat16))
        losses = reference_losses(logits.float() if half_to_float else logits, labels, smoothing)
        return losses.masked_fill(labels == padding_idx, 0.0)


PUBLISHED = {
    "liger_kernel.transformers.functional": {"liger_cross_entropy": liger_cross_entropy},
    "quack.cross_entropy": {"cross_entropy": quack_cross_entropy},
    "flash_attn.ops.triton.cross_entropy": {"cross_entropy_loss": cross_entropy_loss},
    "apex.contrib.xentropy": {"SoftmaxCrossEntropyLoss": SoftmaxCrossEntropyLoss},
}


def publish(monkeypatch, module, **contents):
    """Makes a module, and the packages above it, importable."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[module]).update(contents)


def withdraw(monkeypatch):
    """Makes the peers fail to import, installed or not."""
    for module in PUBLISHED:
        for name in (module.partition(".")[0], module):
            monkeypatch.setitem(sys.modules, name, None)


def publish_all(monkeypatch):
    for module, contents in PUBLISHED.items():
        publish(monkeypatch, module, **contents)
