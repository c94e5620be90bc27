"""Which calls run on a fused kernel and which on torch's own function, as data: the table of docs/routing.md.

Each row has a description, the route ("fused" or "torch"), and a function that makes the call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CROSS_ENTROPY,
    NLL_LOSS,
    sample,
    sample_class_probabilities,
)
from torch.utils._python_dispatch import TorchDispatchMode

FUSED, TORCH = "fused", "torch"


@dataclass(frozen=True)
class Route:
    call: str
    route: str
    run: Callable[[], object]


def classes(loss=CROSS_ENTROPY, shape=(6, 5), dtype=torch.float32, target_dtype=torch.int64, **options):
    def call():
        input, target = sample(loss, shape, dtype)
        return loss.ours(input.requires_grad_(), target.to(target_dtype), **options)

    return call


def class_probabilities(dtype=torch.float32, target_dtype=torch.float32, wants_gradient=False, **options):
    def call():
        logits, _ = sample(CROSS_ENTROPY, (6, 5), dtype)
        target = sample_class_probabilities((6, 5), target_dtype).requires_grad_(wants_gradient)
        return CROSS_ENTROPY.ours(logits.requires_grad_(), target, **options)

    return call


def binary(loss=BINARY_CROSS_ENTROPY_WITH_LOGITS, dtype=torch.float32, wants_gradient=(), **options):
    def call():
        input, target = sample(loss, (6, 5), dtype)
        arguments = {"input": input.requires_grad_(), "target": target, **options}
        for name in wants_gradient:
            arguments[name] = arguments[name].detach().clone().requires_grad_()
        return loss.ours(**arguments)

    return call


def under(context, call):
    def in_context():
        with context():
            return call()

    return in_context


def weight(dtype=torch.float32):
    return torch.linspace(0.5, 2, 5, dtype=dtype)


class AnyDispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class TensorSubclass(torch.Tensor):
    pass


def noncontiguous_logits():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    return CROSS_ENTROPY.ours(logits.t().contiguous().t().requires_grad_(), target)


def channels_last_logits():
    logits, target = sample(CROSS_ENTROPY, (2, 5, 4, 3))
    return CROSS_ENTROPY.ours(logits.to(memory_format=torch.channels_last).requires_grad_(), target)


def subclass_logits():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    return CROSS_ENTROPY.ours(logits.as_subclass(TensorSubclass), target)


def parameter_logits():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    return CROSS_ENTROPY.ours(torch.nn.Parameter(logits), target)


def meta_logits():
    return CROSS_ENTROPY.ours(torch.empty(6, 5, device="meta"), torch.empty(6, dtype=torch.int64, device="meta"))


def vmapped():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    return torch.func.vmap(CROSS_ENTROPY.ours)(torch.stack([logits] * 2), torch.stack([target] * 2))


def transformed(transform):
    def call():
        logits, target = sample(CROSS_ENTROPY, (6, 5))
        return transform(lambda x: CROSS_ENTROPY.ours(x, target))(logits)

    return call


def dual_logits():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(CROSS_ENTROPY.ours(forward_ad.make_dual(logits, logits), target)).tangent


def compiled():
    torch.compiler.reset()
    return torch.compile(CROSS_ENTROPY.ours, backend="eager", fullgraph=True)(*sample(CROSS_ENTROPY, (6, 5)))


def scripted_module():
    return torch.jit.script(CROSS_ENTROPY.our_module())(*sample(CROSS_ENTROPY, (6, 5)))


def constant_logits():
    return CROSS_ENTROPY.ours(*sample(CROSS_ENTROPY, (6, 5)))


def traced_module():
    example = sample(CROSS_ENTROPY, (6, 5))
    return torch.jit.trace(CROSS_ENTROPY.our_module(), example, check_trace=False)(*example)


def of_types(logits_dtype, weight_dtype):
    return classes(dtype=logits_dtype, weight=weight(weight_dtype))


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


ROUTES = [
    Route("cross_entropy of float32 logits and int64 class indices", FUSED, classes()),
    Route("cross_entropy of float64 logits", FUSED, classes(dtype=torch.float64)),
    Route("cross_entropy of bfloat16 logits", FUSED, classes(dtype=torch.bfloat16)),
    Route("cross_entropy of float16 logits", FUSED, classes(dtype=torch.float16)),
    Route("cross_entropy of uint8 class indices", FUSED, classes(target_dtype=torch.uint8)),
    Route("cross_entropy of int32 class indices, which torch refuses", FUSED, classes(target_dtype=torch.int32)),
    Route("cross_entropy with weight", FUSED, classes(weight=weight())),
    Route("cross_entropy with ignore_index", FUSED, classes(ignore_index=2)),
    Route("cross_entropy with label_smoothing", FUSED, classes(label_smoothing=0.1)),
    Route(
        "cross_entropy with logit_scale, softcap, lse_square_scale or focal_gamma",
        FUSED,
        classes(softcap=3.0, lse_square_scale=1e-4),
    ),
    Route("cross_entropy with reduction='none'", FUSED, classes(reduction="none")),
    Route("cross_entropy with reduction='sum'", FUSED, classes(reduction="sum")),
    Route("cross_entropy of logits without a batch axis (C)", FUSED, classes(shape=(5,))),
    Route("cross_entropy of images (N, C, H, W)", FUSED, classes(shape=(2, 5, 4, 3))),
    Route("cross_entropy of volumes (N, C, D, H, W)", FUSED, classes(shape=(2, 5, 2, 4, 3))),
    Route("cross_entropy of channels_last images", FUSED, channels_last_logits),
    Route("cross_entropy of logits that are not contiguous", FUSED, noncontiguous_logits),
    Route("cross_entropy of a torch.nn.Parameter", FUSED, parameter_logits),
    Route("cross_entropy of logits that do not require a gradient", FUSED, constant_logits),
    Route("cross_entropy under torch.no_grad()", FUSED, under(torch.no_grad, classes())),
    Route("cross_entropy under torch.inference_mode()", FUSED, under(torch.inference_mode, classes())),
    Route("cross_entropy under torch.autocast", FUSED, under(autocast, classes(dtype=torch.bfloat16))),
    Route(
        "cross_entropy with float32 weight and bfloat16 logits under torch.autocast",
        FUSED,
        under(autocast, of_types(torch.bfloat16, torch.float32)),
    ),
    Route("cross_entropy of class probabilities", FUSED, class_probabilities()),
    Route(
        "cross_entropy of class probabilities with weight and label_smoothing",
        FUSED,
        class_probabilities(weight=weight(), label_smoothing=0.1),
    ),
    Route(
        "cross_entropy of float32 class probabilities and bfloat16 logits",
        FUSED,
        class_probabilities(dtype=torch.bfloat16),
    ),
    Route(
        "cross_entropy of float64 class probabilities and float32 logits",
        TORCH,
        class_probabilities(target_dtype=torch.float64),
    ),
    Route("nll_loss of class indices", FUSED, classes(NLL_LOSS)),
    Route("nll_loss of int32 class indices, which torch refuses", FUSED, classes(NLL_LOSS, target_dtype=torch.int32)),
    Route("nll_loss with weight and ignore_index", FUSED, classes(NLL_LOSS, weight=weight(), ignore_index=2)),
    Route("nll_loss of images (N, C, H, W)", FUSED, classes(NLL_LOSS, shape=(2, 5, 4, 3))),
    Route("binary_cross_entropy", FUSED, binary(BINARY_CROSS_ENTROPY)),
    Route("binary_cross_entropy with a weight that broadcasts", FUSED, binary(BINARY_CROSS_ENTROPY, weight=weight())),
    Route("binary_cross_entropy_with_logits", FUSED, binary()),
    Route("binary_cross_entropy_with_logits in bfloat16", FUSED, binary(dtype=torch.bfloat16)),
    Route(
        "binary_cross_entropy_with_logits with weight and pos_weight that broadcast",
        FUSED,
        binary(weight=weight(), pos_weight=weight()),
    ),
    Route("a class probability target that requires a gradient", TORCH, class_probabilities(wants_gradient=True)),
    Route("a class weight that requires a gradient", TORCH, class_probabilities(weight=weight().requires_grad_())),
    Route("a binary target that requires a gradient", TORCH, binary(wants_gradient=["target"])),
    Route(
        "a binary_cross_entropy target that requires a gradient",
        TORCH,
        binary(BINARY_CROSS_ENTROPY, wants_gradient=["target"]),
    ),
    Route("an empty batch (0, C)", TORCH, classes(shape=(0, 5))),
    Route("a tensor subclass", TORCH, subclass_logits),
    Route("tensors on the meta device", TORCH, meta_logits),
    Route("under a TorchDispatchMode", FUSED, under(AnyDispatchMode, classes())),
    Route("under torch.func.vmap", FUSED, vmapped),
    Route("under torch.func.grad", FUSED, transformed(torch.func.grad)),
    Route("under torch.func.hessian", TORCH, transformed(torch.func.hessian)),
    Route("under torch.func.functionalize", TORCH, transformed(torch.func.functionalize)),
    Route("under forward-mode AD", TORCH, dual_logits),
    Route("inside torch.compile", FUSED, compiled),
    Route("a module compiled by torch.jit.script", TORCH, scripted_module),
    Route("a module recorded by torch.jit.trace", TORCH, traced_module),
]
