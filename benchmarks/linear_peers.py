"""Other packages' losses of a linear layer, each called as its own code calls it. On a CPU:

* cut-cross-entropy's ``torch_compile`` implementation: all logits, of the rows that count, in one compiled function.
  Its kernels are Triton's, for a GPU.
* torchtune's ``CEWithChunkedOutputLoss``: the layer and the loss on eight chunks of the rows, whose logits stay until
  the backward.
* TRL's ``ChunkedLogProbFunction``: blocks of rows and classes, computed again in the backward; by torch's operators
  where Triton does not run, and there of every row, as ``SFTTrainer`` calls it.

On a GPU the Triton kernels of two of them: cut-cross-entropy with its default, which leaves out small gradients, and
without; liger-kernel's ``liger_fused_linear_cross_entropy``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

__all__ = ["GPU_PEERS", "PEERS", "LinearLoss"]

LinearLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of input, weight and target with -100 for what is ignored: the mean."""

_TORCHTUNES_CHUNKS = 8  # its default


def _cut_cross_entropy() -> LinearLoss:
    from cut_cross_entropy.torch_compile import torch_compile_linear_cross_entropy

    function: LinearLoss = torch_compile_linear_cross_entropy
    return function


def _cut_cross_entropys_kernels(filter_eps: str | None) -> LinearLoss:
    from cut_cross_entropy import linear_cross_entropy

    return partial(linear_cross_entropy, filter_eps=filter_eps, impl="cce")


def _liger() -> LinearLoss:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    function: LinearLoss = liger_fused_linear_cross_entropy
    return function


def _torchtune() -> LinearLoss:
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    loss = CEWithChunkedOutputLoss(num_output_chunks=_TORCHTUNES_CHUNKS)

    def function(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = [F.linear(chunk, weight) for chunk in input.unsqueeze(0).chunk(_TORCHTUNES_CHUNKS, dim=1)]
        mean: Tensor = loss(logits, target.unsqueeze(0))
        return mean

    return function


def _trl() -> LinearLoss:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def function(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        counts = target != -100
        options = (1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())
        log_prob = ChunkedLogProbFunction.apply(input, weight, None, target.clamp(min=0), *options)[0]
        mean: Tensor = -log_prob.masked_fill(~counts, 0).sum() / counts.sum()
        return mean

    return function


PEERS: dict[str, Callable[[], LinearLoss]] = {
    "cut-cross-entropy": _cut_cross_entropy,
    "torchtune": _torchtune,
    "TRL": _trl,
}
GPU_PEERS: dict[str, Callable[[], LinearLoss]] = {
    "cut-cross-entropy": partial(_cut_cross_entropys_kernels, "high"),
    "cut-cross-entropy, unfiltered": partial(_cut_cross_entropys_kernels, None),
    "liger-kernel": _liger,
}
