"""The kernels as :class:`torch.autograd.Function` subclasses, one per loss, and the choice between them."""

from .binary_cross_entropy import BinaryCrossEntropyFunction
from .binary_cross_entropy_with_logits import BinaryCrossEntropyWithLogitsFunction
from .cross_entropy import CrossEntropyFunction
from .linear_cross_entropy import LinearCrossEntropyFunction
from .linear_token_statistics import LinearTokenStatisticsFunction
from .nll_loss import NLLLossFunction

__all__ = [
    "BinaryCrossEntropyFunction",
    "BinaryCrossEntropyWithLogitsFunction",
    "CrossEntropyFunction",
    "LinearCrossEntropyFunction",
    "LinearTokenStatisticsFunction",
    "NLLLossFunction",
]
