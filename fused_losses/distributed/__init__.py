"""Losses whose classes are spread over the ranks of a :mod:`torch.distributed` group: ``docs/distributed.md``."""

from .linear import vocab_parallel_linear_cross_entropy
from .losses import vocab_parallel_cross_entropy, vocab_parallel_token_statistics
from .modules import VocabParallelCrossEntropyLoss, VocabParallelLinearCrossEntropyLoss, VocabParallelTokenStatistics

__all__ = [
    "VocabParallelCrossEntropyLoss",
    "VocabParallelLinearCrossEntropyLoss",
    "VocabParallelTokenStatistics",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_linear_cross_entropy",
    "vocab_parallel_token_statistics",
]
