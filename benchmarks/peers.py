"""The other fused cross-entropies on a GPU, each called as its own documentation does; one that is missing says why.

All take (N, C) logits and N class indices. Signatures were read in the sources; of these only liger-kernel has run, on
an H200:

* liger-kernel, ``liger_kernel/transformers/functional.py``: ``liger_cross_entropy(input, target, weight=None,
  size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0, ...)``. Older versions
  accept `weight` and ignore it, which `check_agreement` notices. Its forward writes the gradient over the logits.
* quack-kernels, ``quack/cross_entropy.py``: ``cross_entropy(x, target, lse_partial=None, weight=None,
  ignore_index=-100, reduction="mean", inplace_backward=False)``; older versions have no `weight`.
* flash-attn, ``flash_attn/ops/triton/cross_entropy.py``: ``cross_entropy_loss(logits, labels, precomputed_lse=None,
  label_smoothing=0.0, ...)`` gives the losses of the rows and their z-losses.
* apex, ``apex/contrib/xentropy/softmax_xentropy.py``: ``SoftmaxCrossEntropyLoss.apply(logits, labels, smoothing=0.0,
  padding_idx=0, half_to_float=False)`` gives the losses of the rows.

cut-cross-entropy is not among them: ``linear_cross_entropy(e, c, targets, ...)`` takes what the logits are computed
from and never has logits in memory, so its time is that of a matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.agreement import check_agreement
from benchmarks.cases import Case
from benchmarks.contenders import Contender, LossFunction, overwriting_contender, preserving_contender
from benchmarks.inputs import Inputs


class PeerAbsentError(Exception):
    """Why a peer takes no part, in a line."""


@dataclass(frozen=True)
class Peer:
    """A package: how its loss is imported as a function with torch's arguments, and what that function knows."""

    name: str
    load: Callable[[], LossFunction]
    class_weight: bool = False
    label_smoothing: bool = False
    overwrites_logits: bool = False

    def contender(self, case: Case, rotation: Sequence[Inputs]) -> Contender:
        if lacking := self.lacking(case):
            raise PeerAbsentError(f"not comparable: {lacking}")
        try:
            function = self.load()
        except ImportError as error:
            raise PeerAbsentError(f"unavailable: {error}") from error
        make = overwriting_contender if self.overwrites_logits else preserving_contender
        return make(self.name, function, rotation)

    def lacking(self, case: Case) -> str | None:
        """What of the case it does not know, None if it knows it all."""
        if case.loss != "cross_entropy" or len(case.shape) != 2 or case.probability_target:
            return "it has a cross-entropy of (N, C) logits and class indices only"
        if case.class_weight and not self.class_weight:
            return "it has no class weights"
        if case.label_smoothing and not self.label_smoothing:
            return "it has no label smoothing"
        return None


def _liger() -> LossFunction:
    from liger_kernel.transformers.functional import liger_cross_entropy

    function: LossFunction = liger_cross_entropy
    return function


def _quack() -> LossFunction:
    from quack.cross_entropy import cross_entropy

    function: LossFunction = cross_entropy
    return function


# No target of the benchmark is ignored, so the mean over the rows is torch's mean.


def _flash_attn() -> LossFunction:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    def function(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        losses: Tensor = cross_entropy_loss(logits, target, label_smoothing=label_smoothing)[0]
        return losses.mean()

    return function


def _apex() -> LossFunction:
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    def function(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        half_to_float = logits.element_size() == 2
        # Its default padding_idx, 0, would ignore the rows of class 0.
        losses: Tensor = SoftmaxCrossEntropyLoss.apply(logits, target, label_smoothing, -100, half_to_float)
        return losses.mean()

    return function


PEERS = (
    Peer("liger-kernel", _liger, class_weight=True, label_smoothing=True, overwrites_logits=True),
    Peer("quack-kernels", _quack, class_weight=True),
    Peer("flash-attn", _flash_attn, label_smoothing=True),
    Peer("apex", _apex, label_smoothing=True),
)


def peer_contenders(
    case: Case, rotation: Sequence[Inputs], reference: Contender
) -> tuple[list[Contender], dict[str, str]]:
    """The peers that compute the case's loss right, and why each of the others does not take part."""
    present, absent = [], {}
    for peer in PEERS:
        try:
            contender = peer.contender(case, rotation)
            check_agreement([reference, contender])
            present.append(contender)
        except PeerAbsentError as reason:
            absent[peer.name] = str(reason)
        except Exception as error:  # whatever another project's import or kernel raises is why it is absent
            absent[peer.name] = f"failed: {type(error).__name__}: {error}".partition("\n")[0]
    return present, absent
