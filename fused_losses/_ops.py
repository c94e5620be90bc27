"""The operators ``torch.ops.fused_losses.*`` under their Python names.

The operators under the losses' own names, ``cross_entropy_with_statistics``, the ``_prepared`` and ``_backward`` ones
can be differentiated themselves (:mod:`fused_losses.operators`), so that a graph that holds one has the right gradient.
The other variants (``_forward``, ``_with_gradient``, ``_prepared_backward``, ``_over_logits``, ``_rescale_gradient``
and so on) are building blocks and have no derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _C, _cuda  # noqa: F401  loading them registers the operators and their kernels

_namespace = torch.ops.fused_losses

_Loss = Callable[..., Tensor]
_LossAndMore = Callable[..., tuple[Tensor, Tensor]]
_Overwrite = Callable[..., None]  # of a tensor that is given
_OverLogits = Callable[..., bool]  # whether the gradient was written: not where it has no place there

cross_entropy: _Loss = _namespace.cross_entropy.default
cross_entropy_forward: _Loss = _namespace.cross_entropy_forward.default
cross_entropy_with_gradient: _LossAndMore = _namespace.cross_entropy_with_gradient.default
cross_entropy_with_statistics: _LossAndMore = _namespace.cross_entropy_with_statistics.default
cross_entropy_prepared: _LossAndMore = _namespace.cross_entropy_prepared.default
cross_entropy_backward: _Loss = _namespace.cross_entropy_backward.default
cross_entropy_backward_over_logits: _OverLogits = _namespace.cross_entropy_backward_over_logits.default
nll_loss: _Loss = _namespace.nll_loss.default
nll_loss_forward: _Loss = _namespace.nll_loss_forward.default
nll_loss_backward: _Loss = _namespace.nll_loss_backward.default
binary_cross_entropy: _Loss = _namespace.binary_cross_entropy.default
binary_cross_entropy_forward: _Loss = _namespace.binary_cross_entropy_forward.default
binary_cross_entropy_with_gradient: _LossAndMore = _namespace.binary_cross_entropy_with_gradient.default
binary_cross_entropy_prepared: _LossAndMore = _namespace.binary_cross_entropy_prepared.default
binary_cross_entropy_prepared_backward: _Loss = _namespace.binary_cross_entropy_prepared_backward.default
binary_cross_entropy_backward: _Loss = _namespace.binary_cross_entropy_backward.default
binary_cross_entropy_with_logits: _Loss = _namespace.binary_cross_entropy_with_logits.default
binary_cross_entropy_with_logits_forward: _Loss = _namespace.binary_cross_entropy_with_logits_forward.default
binary_cross_entropy_with_logits_with_gradient: _LossAndMore = (
    _namespace.binary_cross_entropy_with_logits_with_gradient.default
)
binary_cross_entropy_with_logits_prepared: _LossAndMore = _namespace.binary_cross_entropy_with_logits_prepared.default
binary_cross_entropy_with_logits_prepared_backward: _Loss = (
    _namespace.binary_cross_entropy_with_logits_prepared_backward.default
)
binary_cross_entropy_with_logits_backward: _Loss = _namespace.binary_cross_entropy_with_logits_backward.default
binary_cross_entropy_with_logits_backward_over_logits: _OverLogits = (
    _namespace.binary_cross_entropy_with_logits_backward_over_logits.default
)
token_statistics: Callable[..., tuple[Tensor, ...]] = _namespace.token_statistics.default
token_statistics_backward: _Loss = _namespace.token_statistics_backward.default
sigmoid_focal_loss: _Loss = _namespace.sigmoid_focal_loss.default
sigmoid_focal_loss_backward: _Loss = _namespace.sigmoid_focal_loss_backward.default
cross_entropy_rescale_gradient: _Overwrite = _namespace.cross_entropy_rescale_gradient.default
binary_cross_entropy_rescale_gradient: _Overwrite = _namespace.binary_cross_entropy_rescale_gradient.default
binary_cross_entropy_with_logits_rescale_gradient: _Overwrite = (
    _namespace.binary_cross_entropy_with_logits_rescale_gradient.default
)
elementary_function: _Loss = _namespace.elementary_function.default
