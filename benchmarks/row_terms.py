"""What the options beyond torch's cost in cross-entropy, beside the plain loss and beside the composition of operators.

python -m benchmarks.row_terms [--rows 2048 --classes 32000 ...]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Task
from benchmarks.ratios import print_ratios
from fused_losses.functional import cross_entropy

SOFTCAP = 30.0
Z_LOSS = 1e-4


def composition(logits: Tensor, target: Tensor) -> Tensor:
    """Softcap and z-loss as models write them."""
    x = SOFTCAP * torch.tanh(logits.float() / SOFTCAP)
    return F.cross_entropy(x, target) + Z_LOSS * x.logsumexp(-1).square().mean()


def call(loss_of: Callable[..., Tensor], logits: Tensor, target: Tensor, *, backward: bool, **options: Any) -> None:
    with torch.set_grad_enabled(backward):
        loss = loss_of(logits, target, **options)
    if backward:
        torch.autograd.grad(loss, logits)


def contenders(logits: Tensor, target: Tensor, *, backward: bool) -> dict[str, Task]:
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "logit_scale": {"logit_scale": 0.7},
        "z-loss": {"lse_square_scale": Z_LOSS},
        "focal": {"focal_gamma": 2.0},
        "token_weight": {"token_weight": torch.rand(target.shape, device=target.device) + 0.1},
        "softcap": {"softcap": SOFTCAP},
        "softcap, z-loss": {"softcap": SOFTCAP, "lse_square_scale": Z_LOSS},
    }
    tasks = {
        name: Task([partial(call, cross_entropy, logits, target, backward=backward, **chosen)])
        for name, chosen in options.items()
    }
    tasks["these by torch"] = Task([partial(call, composition, logits, target, backward=backward)])
    return tasks


def main(arguments: list[str] | None = None) -> None:
    print_ratios(__doc__, contenders, base="plain", arguments=arguments)


if __name__ == "__main__":
    main()
