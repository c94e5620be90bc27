"""Cross-entropy of a linear layer whose classes are spread over the ranks of a process group, without the logits."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ..linear_layer import autocast_layer
from ..operators.row_terms import refuse_tensors
from . import operators
from .arguments import name_of_group, refuse_call
from .loss import LossOptions

__all__ = ["vocab_parallel_linear_cross_entropy"]


def vocab_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight_local: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
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
    reduce_input_gradient: bool = True,
) -> Tensor:
    r"""Cross-entropy of a linear layer's output whose classes are spread over the ranks of a group.

    .. math::
        \ell = \text{vocab\_parallel\_cross\_entropy}(h W_r^\top + b_r, t)

    with this rank's rows :math:`W_r` of the layer's weight. Logits exist for a few rows at a time, and once more in the
    backward. Beside what :func:`vocab_parallel_cross_entropy` sends, the backward sends the gradient of the input,
    which is the same on all ranks then.

    Args:
        input: :math:`h`, the same on every rank; float32, float64, bfloat16 or float16.
        linear_weight_local: :math:`W_r`, of the input's type.
        target: class indices over all ranks, the same on every one: int64, int32 or uint8.
        linear_bias: :math:`b_r`, of the input's type.
        group, vocab_start, weight, ignore_index, label_smoothing: as in :func:`vocab_parallel_cross_entropy`.
        reduction, logit_scale, softcap, lse_square_scale, token_weight: likewise.
        reduce_input_gradient: whether the gradient of the input is summed over the group. Without it each rank gets
            its own classes' part, for a layer below that sums itself.

    Shape:
        - input: :math:`(\dots, F)`.
        - linear_weight_local: :math:`(V_r, F)`, where :math:`V_r`, which may be 0, is this rank's own.
        - target, token_weight: :math:`(\dots)`.
        - the result: a scalar, or :math:`(\dots)` with ``reduction="none"``.

    Returns:
        float32, or float64 of float64 input.

    Raises:
        IndexError: on every rank: a target is neither a class of any rank nor ``ignore_index``.
        ValueError, TypeError: on the rank whose arguments are wrong.
        RuntimeError: on every other rank then.

    Example::

        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> input, linear_weight = torch.ones(1, 1), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> round(vocab_parallel_linear_cross_entropy(input, linear_weight, torch.tensor([3])).item(), 4)
        0.4402
        >>> dist.destroy_process_group()

    Source: as :func:`vocab_parallel_cross_entropy`; chunks of rows as in Cut Your Losses
    (`arXiv:2411.09009 <https://arxiv.org/abs/2411.09009>`_).
    """
    refuse_tensors(logit_scale, softcap, lse_square_scale)
    refuse_call(input, linear_weight_local, linear_bias, target, weight, token_weight)
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
    layer = autocast_layer(input, linear_weight_local, linear_bias)  # here: the backward computes these logits again
    tensors = (*layer, target, weight, token_weight)
    loss: Tensor = operators.linear_cross_entropy(*tensors, reduce_input_gradient, *options)[0]
    return loss
