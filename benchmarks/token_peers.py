"""Other packages' log-probabilities and entropies of tokens that run on a CPU, each called as its own code calls it.

* TRL's ``selective_log_softmax`` and ``entropy_from_logits``, of its trainers: two functions, two sweeps or more.
* torchtune's ``logits_to_logprobs``, of its PPO recipe: log-softmax of all logits. It has no entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

__all__ = ["PEERS", "PeerStatistics", "TokenFunction"]


class PeerStatistics(NamedTuple):
    log_prob: Tensor
    entropy: Tensor | None = None


TokenFunction = Callable[[Tensor, Tensor], PeerStatistics]
"""Of logits (N, V) and class indices (N)."""


def _trl() -> TokenFunction:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def function(logits: Tensor, target: Tensor) -> PeerStatistics:
        batch, tokens = logits.unsqueeze(0), target.unsqueeze(0)  # it goes through the first axis one by one
        return PeerStatistics(selective_log_softmax(batch, tokens)[0], entropy_from_logits(batch)[0])

    return function


def _torchtune() -> TokenFunction:
    from torchtune.rlhf import logits_to_logprobs

    return lambda logits, target: PeerStatistics(logits_to_logprobs(logits.unsqueeze(0), target.unsqueeze(0))[0])


PEERS: dict[str, Callable[[], TokenFunction]] = {"TRL": _trl, "torchtune": _torchtune}
