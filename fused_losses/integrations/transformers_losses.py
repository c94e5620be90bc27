"""What the loss functions of transformers compute, in its names and arguments, without a copy of 16-bit logits."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..functional import binary_cross_entropy_with_logits, cross_entropy
from ..operators.class_axis import is_counted
from .deferred_logits import float32_cross_entropy

__all__ = [
    "causal_lm_loss",
    "label_smoothing_loss",
    "masked_lm_loss",
    "question_answering_loss",
    "semantic_segmentation_loss",
    "sequence_classification_loss",
    "token_classification_loss",
    "trainer_loss",
]


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """``ForCausalLMLoss``: the cross-entropy of each next token, in float32.

    Args:
        logits: :math:`(N, T, V)`, or any shape of as many elements, deferred or not.
        labels: :math:`(N, T)`: position :math:`t` predicts label :math:`t + 1`.
        vocab_size: :math:`V`.
        num_items_in_batch: what the sum of the losses is divided by; ``None`` is the mean.
        ignore_index: the label that does not count.
        shift_labels: instead of ``labels``: position :math:`t` predicts label :math:`t`.

    Raises:
        IndexError: a label is neither in :math:`[0, V)` nor ``ignore_index``.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = _next_of(labels, ignore_index)
    return _float32_loss(logits, shift_labels, vocab_size, num_items_in_batch, ignore_index)


def masked_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    **_: Any,
) -> Tensor:
    """``ForMaskedLMLoss``: as :func:`causal_lm_loss`, of labels that stand where they are predicted."""
    return _float32_loss(logits, labels, vocab_size, num_items_in_batch, ignore_index)


def token_classification_loss(
    logits: Tensor,
    labels: Tensor,
    config: Any,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    **_: Any,
) -> Tensor:
    """``ForTokenClassification``."""
    return _float32_loss(logits, labels, config.num_labels, num_items_in_batch, ignore_index)


def sequence_classification_loss(labels: Tensor, pooled_logits: Tensor, config: Any, **options: Any) -> Tensor:
    """``ForSequenceClassificationLoss``, which is the loss of images, videos and sounds too."""
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif not (labels.is_floating_point() or labels.is_complex()) and labels.dtype.itemsize >= 4:
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    labels = labels.to(pooled_logits.device)
    if config.problem_type == "single_label_classification":
        return _reduced(pooled_logits.view(-1, config.num_labels), labels.view(-1), **options)
    if config.problem_type == "multi_label_classification":
        return binary_cross_entropy_with_logits(pooled_logits, labels)
    if config.problem_type != "regression":
        raise RuntimeError(f"Invalid problem type: {config.problem_type}")
    if config.num_labels == 1:
        return F.mse_loss(pooled_logits.squeeze(), labels.squeeze())
    return F.mse_loss(pooled_logits, labels)


def question_answering_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor | None,
    end_positions: Tensor | None,
    **options: Any,
) -> Tensor | None:
    """``ForQuestionAnsweringLoss``: the mean of two, of positions that are cut off at the end of the text."""
    if start_positions is None or end_positions is None:
        return None
    length = start_logits.size(1)
    losses = [
        _reduced(logits, positions.view(-1).to(logits.device).clamp(0, length), ignore_index=length, **options)
        for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
    ]
    return (losses[0] + losses[1]) / 2


def semantic_segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    num_items_in_batch: Tensor | int | None = None,
    auxiliary_logits: Tensor | None = None,
    auxiliary_loss_weight: float = 0.4,
    **_: Any,
) -> Tensor:
    """``ForSemanticSegmentationLoss``, of logits that are enlarged to the labels' size."""

    def loss_of(small: Tensor) -> Tensor:
        large = F.interpolate(small, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return _reduced(large, labels, num_items_in_batch, ignore_index)

    if auxiliary_logits is None:
        return loss_of(logits)
    return loss_of(logits) + auxiliary_loss_weight * loss_of(auxiliary_logits)


def label_smoothing_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    ignore_index: int = -100,
    shift_labels: bool = False,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """What Trainer's ``LabelSmoother`` computes, in float32.

    Args:
        logits: :math:`(\\dots, V)`, deferred or not.
        labels: :math:`(\\dots)` or :math:`(\\dots, 1)`.
        epsilon: in :math:`[0, 1]`.
        ignore_index: the label that does not count.
        shift_labels: position :math:`t` predicts label :math:`t + 1`.
        num_items_in_batch: what the sum of the losses is divided by; ``None`` is the number of labels that count.

    Raises:
        IndexError: a label is neither in :math:`[0, V)` nor ``ignore_index``. Trainer's takes a negative one for 0.
    """
    labels = labels.reshape(logits.shape[:-1])
    if shift_labels:
        labels = _next_of(labels, ignore_index)
    if num_items_in_batch is None:
        num_items_in_batch = is_counted(labels, ignore_index).sum()
    return _float32_loss(logits, labels, logits.shape[-1], num_items_in_batch, ignore_index, epsilon)


def trainer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """The loss of a causal model for ``Trainer(compute_loss_func=trainer_loss)``."""
    return causal_lm_loss(_logits_of(outputs), labels, num_items_in_batch=num_items_in_batch)


def _logits_of(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits


def _next_of(labels: Tensor, ignore_index: int) -> Tensor:
    """Of each label the next one; the last has none."""
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)


def _float32_loss(
    logits: Tensor,
    labels: Tensor,
    num_classes: int | None,
    num_items_in_batch: Tensor | int | None,
    ignore_index: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    if num_classes is not None and logits.shape[-1] != num_classes:
        logits = logits.reshape(-1, num_classes)
    loss = float32_cross_entropy(
        logits,
        labels.to(logits.device),
        reduction="mean" if num_items_in_batch is None else "sum",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return _divided(loss, num_items_in_batch)


def _reduced(
    logits: Tensor,
    target: Tensor,
    /,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    **_: Any,
) -> Tensor:
    """In the logits' own type. By keyword come arguments of the model's own, ``logits`` among them."""
    reduction = "mean" if num_items_in_batch is None else "sum"
    return _divided(cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction), num_items_in_batch)


def _divided(loss: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    if num_items_in_batch is None:
        return loss
    return loss / (num_items_in_batch.to(loss.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch)
