"""Losses whose classes are spread over the ranks of a :mod:`torch.distributed` group: ``docs/distributed.md``."""

from .losses import vocab_parallel_cross_entropy, vocab_parallel_token_statistics

__all__ = [
    "vocab_parallel_cross_entropy",
    "vocab_parallel_token_statistics",
]
