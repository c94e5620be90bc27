"""What the statistics of tokens cost beside cross-entropy and beside torch's operators.

python -m benchmarks.tokens [--rows 2048 --classes 32000 ...]

"cross-entropy" is the fused one; forward and backward, it reads the logits in both, as the statistics must, whose
gradients nobody knows in the forward. TRL, where it is installed, gives two of the four statistics by two functions;
their numbers are compared with ours first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import Task
from benchmarks.ratios import print_ratios
from fused_losses import _ops
from fused_losses.functional import TokenStatistics, token_statistics


def eager_statistics(logits: Tensor, target: Tensor) -> TokenStatistics:
    """Log-softmax and what follows from it, as libraries of language models write it."""
    exact = logits.float()
    log_p = exact.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    log_prob = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return TokenStatistics(log_prob, exact.logsumexp(-1), entropy, logits.argmax(-1))


class TrlStatistics(NamedTuple):
    log_prob: Tensor
    entropy: Tensor


def trl_statistics() -> Callable[[Tensor, Tensor], TrlStatistics] | None:
    try:
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax
    except ImportError:
        return None
    return lambda logits, target: TrlStatistics(selective_log_softmax(logits, target), entropy_from_logits(logits))


def cross_entropy(logits: Tensor, target: Tensor, *, backward: bool) -> None:
    arguments, options = (logits.detach(), target, None), (1, -100, 0.0, False)
    if not backward:
        _ops.cross_entropy_forward(*arguments, *options)
        return
    loss, statistics = _ops.cross_entropy_with_statistics(*arguments, *options)
    _ops.cross_entropy_backward(torch.ones_like(loss), *arguments, statistics, *options)


def call(function: Callable[..., Any], logits: Tensor, target: Tensor, *, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        result = function(logits, target)
    if backward:
        differentiable = [part for part in result if part.is_floating_point()]
        torch.autograd.grad(torch.stack(differentiable).sum(), logits)


def check_agreement(function: Callable[[Tensor, Tensor], TrlStatistics], logits: Tensor, target: Tensor) -> None:
    """Refuses to time wrong numbers. TRL's are of the logits' type."""
    ours, theirs = token_statistics(logits[:64], target[:64]), function(logits[:64], target[:64])
    tolerance = 1e-5 if logits.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(theirs.log_prob.float(), ours.log_prob, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(theirs.entropy.float(), ours.entropy, rtol=tolerance, atol=tolerance)


def contenders(logits: Tensor, target: Tensor, *, backward: bool) -> dict[str, Task]:
    functions: dict[str, Any] = {
        "statistics": partial(call, token_statistics),
        "statistics, logit_scale": partial(call, partial(token_statistics, logit_scale=0.7)),
        "statistics, softcap": partial(call, partial(token_statistics, softcap=30.0)),
        "torch's operators": partial(call, eager_statistics),
        "cross-entropy": cross_entropy,
    }
    if (trl := trl_statistics()) is not None:
        if logits.numel() and not backward:
            check_agreement(trl, logits.detach(), target)
        functions["TRL"] = partial(call, trl)
    return {name: Task([partial(f, logits, target, backward=backward)]) for name, f in functions.items()}


def main(arguments: list[str] | None = None) -> None:
    print_ratios(__doc__, contenders, base="cross-entropy", arguments=arguments)


if __name__ == "__main__":
    main()
