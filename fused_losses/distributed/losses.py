"""Cross-entropy and statistics of tokens whose classes are spread over the ranks of a process group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ..operators.row_terms import refuse_tensors
from ..tokens import TokenStatistics
from . import operators
from .arguments import name_of_group, refuse_call
from .loss import LossOptions

__all__ = ["vocab_parallel_cross_entropy", "vocab_parallel_token_statistics"]


def vocab_parallel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    logit_scale: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    token_weight: Tensor | None = None,
) -> Tensor:
    r"""Softmax cross-entropy of logits whose classes are spread over the ranks of a group.

    .. math::
        \ell_n = u_n \left( -\sum_c q_{nc} \log \frac{\exp x_{nc}}{\sum_k \exp x_{nk}}
                 + \lambda \Big(\log \sum_k \exp x_{nk}\Big)^2 \right), \quad
        x = s \tanh(a\, l / s)

    with :math:`q_n` the one-hot target, smoothed and weighted over the classes of all ranks, the logits :math:`l`,
    ``logit_scale`` :math:`a`, ``softcap`` :math:`s` (without one :math:`x = a\, l`), ``lse_square_scale``
    :math:`\lambda` and ``token_weight`` :math:`u`. Every rank calls it with its own classes and the same of everything
    else, gets the same loss, and from the backward the gradient of its own logits. Sent are one maximum and a few sums
    of each row; the backward sends nothing and can be differentiated no second time.

    Args:
        logits: this rank's classes, the class axis last; float32, float64, bfloat16 or float16, rows of any stride.
        target: class indices over all ranks, the same on every one: int64, int32 or uint8.
        group: the ranks; the default process group if ``None``.
        vocab_start: the first class of this rank. If ``None``, shards follow each other in the order of ranks; their
            sizes are exchanged once and remembered.
        weight: one weight for each of this rank's classes.
        ignore_index: the class index that does not count.
        label_smoothing: in :math:`[0, 1]`, spread over the classes of all ranks.
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets) or ``"sum"``.
        logit_scale: a finite number other than 0.
        softcap: a positive number, or ``None``.
        lse_square_scale: of the square of the log-sum-exp, added for each row that counts.
        token_weight: a number for each row, which the mean's denominator leaves out; it can be differentiated.

    Shape:
        - logits: :math:`(\dots, V_r)`, where :math:`V_r`, which may be 0, is this rank's own.
        - target, token_weight: :math:`(\dots)`.
        - the result: a scalar, or :math:`(\dots)` with ``reduction="none"``.

    Returns:
        float32, or float64 of float64 logits.

    Raises:
        IndexError: on every rank: a target is neither a class of any rank nor ``ignore_index``.
        ValueError, TypeError: on the rank whose arguments are wrong.
        RuntimeError: on every other rank then.

    Example::

        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> loss = vocab_parallel_cross_entropy(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([3]))
        >>> round(loss.item(), 4)
        0.4402
        >>> dist.destroy_process_group()

    Source: Megatron-LM (`arXiv:1909.08053 <https://arxiv.org/abs/1909.08053>`_), section 3, for the sharded
    cross-entropy; PaLM (`arXiv:2204.02311 <https://arxiv.org/abs/2204.02311>`_), section 5, for the squared
    log-sum-exp; `Gemma 2 <https://arxiv.org/abs/2408.00118>`_ for the softcap.
    """
    refuse_tensors(logit_scale, softcap, lse_square_scale)
    refuse_call(logits, target, weight, token_weight)
    options = LossOptions(
        name_of_group(group),
        vocab_start,
        ignore_index,
        label_smoothing,
        reduction,
        logit_scale,
        softcap,
        lse_square_scale,
    )
    loss: Tensor = operators.cross_entropy(logits, target, weight, token_weight, *options)[0]
    return loss


def vocab_parallel_token_statistics(
    logits: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> TokenStatistics:
    r"""Log-probability, log-sum-exp, entropy and argmax of rows whose classes are spread over the ranks of a group.

    As :func:`fused_losses.functional.token_statistics`, with its formulas, of the classes of all ranks together. Every
    rank gets the same results, and must compute the same of them: from the backward it gets the gradient of its own
    logits. The backward sends nothing and can be differentiated no second time.

    Args:
        logits: this rank's classes, the class axis last; float32, float64, bfloat16 or float16, rows of any stride.
        target: class indices over all ranks, the same on every one: int64, int32 or uint8.
        group: the ranks; the default process group if ``None``.
        vocab_start: the first class of this rank; see :func:`vocab_parallel_cross_entropy`.
        logit_scale: a finite number other than 0.
        softcap: a positive number, or ``None``.
        ignore_index: the target without a log-probability. Its row has all the other statistics.

    Shape:
        - logits: :math:`(\dots, V_r)`, where :math:`V_r`, which may be 0, is this rank's own.
        - target and every result: :math:`(\dots)`.

    Returns:
        float32 results, or float64 of float64 logits, and the int64 ``argmax`` over the classes of all ranks: the first
        of the largest, or the first NaN.

    Raises:
        IndexError: on every rank: a target is neither a class of any rank nor ``ignore_index``.
        ValueError, TypeError: on the rank whose arguments are wrong.
        RuntimeError: on every other rank then.

    Example::

        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> tokens = vocab_parallel_token_statistics(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([3]))
        >>> [round(result.item(), 4) for result in tokens]
        [-0.4402, 3.4402, 0.9475, 3]
        >>> dist.destroy_process_group()

    Source: derivatives: ``csrc/core/token_statistics.h``; the sums of shards: Note [Sums of a shard] in
    ``fused_losses/distributed/shard.py``.
    """
    refuse_tensors(logit_scale, softcap)
    refuse_call(logits, target)
    options = (name_of_group(group), vocab_start, ignore_index, logit_scale, softcap)
    return TokenStatistics(*operators.token_statistics(logits, target, *options)[:4])
