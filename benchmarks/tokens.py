"""What the statistics of tokens cost beside cross-entropy and beside torch's operators.

python -m benchmarks.tokens [--rows 2048 --classes 32000 ...]

"cross-entropy" is the fused one; forward and backward, it reads the logits in both, as the statistics must, whose
gradients nobody knows in the forward. TRL and torchtune, where they are installed, give two and one of the four
statistics; their numbers are compared with ours first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Task
from benchmarks.optional_peers import load_peers
from benchmarks.ratios import print_ratios
from benchmarks.token_peers import PEERS, TokenFunction
from fused_losses import _ops
from fused_losses.functional import TokenStatistics, token_statistics


def eager_statistics(logits: Tensor, target: Tensor) -> TokenStatistics:
    """Log-softmax and what follows from it, as libraries of language models write it."""
    exact = logits.float()
    log_p = exact.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    log_prob = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return TokenStatistics(log_prob, exact.logsumexp(-1), entropy, logits.argmax(-1))


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
        differentiable = [part for part in result if part is not None and part.is_floating_point()]
        torch.autograd.grad(torch.stack(differentiable).sum(), logits)


def check_agreement(function: TokenFunction, logits: Tensor, target: Tensor) -> None:
    """Refuses to time wrong numbers. The peers' are of the logits' type."""
    ours, theirs = token_statistics(logits[:64], target[:64]), function(logits[:64], target[:64])
    tolerance = 1e-5 if logits.dtype is torch.float32 else 2e-2
    for their, our in zip(theirs, (ours.log_prob, ours.entropy), strict=True):
        if their is not None:
            torch.testing.assert_close(their.float(), our, rtol=tolerance, atol=tolerance)


def contenders(logits: Tensor, target: Tensor, *, backward: bool) -> dict[str, Task]:
    functions: dict[str, Any] = {
        "statistics": partial(call, token_statistics),
        "statistics, logit_scale": partial(call, partial(token_statistics, logit_scale=0.7)),
        "statistics, softcap": partial(call, partial(token_statistics, softcap=30.0)),
        "torch's operators": partial(call, eager_statistics),
        "cross-entropy": cross_entropy,
    }
    peers, absent = load_peers(PEERS)
    if not logits.numel():  # once: for the head of the table
        for name, why in absent.items():
            print(f"without {name}: {why}")
    for name, function in peers.items():
        if logits.numel() and not backward:
            check_agreement(function, logits.detach(), target)
        functions[name] = partial(call, function)
    return {name: Task([partial(f, logits, target, backward=backward)]) for name, f in functions.items()}


def main(arguments: list[str] | None = None) -> None:
    print_ratios(__doc__, contenders, base="cross-entropy", arguments=arguments)


if __name__ == "__main__":
    main()
