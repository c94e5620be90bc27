"""Hugging Face transformers: fused losses for its models and for Trainer, and training without the logits.

* :func:`enable` replaces the losses of every model, or of one; :func:`disable` puts them back.
* :func:`fused_linear_head` makes one causal model's last projection and its loss one function;
  :func:`unfused_linear_head` undoes it.
* :func:`trainer_loss` is for ``Trainer(compute_loss_func=trainer_loss)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss import loss_utils
from transformers.trainer_pt_utils import LabelSmoother

from ..held_functions import holders_of
from . import transformers_losses as ours
from .deferred_logits import DeferringLinear
from .transformers_losses import causal_lm_loss, label_smoothing_loss, trainer_loss

__all__ = [
    "causal_lm_loss",
    "disable",
    "enable",
    "fused_linear_head",
    "is_enabled",
    "label_smoothing_loss",
    "trainer_loss",
    "unfused_linear_head",
]

# By name: a transformers that lacks one has the others.
_NAMES: dict[str, Callable[..., Any]] = {
    "ForCausalLMLoss": ours.causal_lm_loss,
    "ForMaskedLMLoss": ours.masked_lm_loss,
    "ForTokenClassification": ours.token_classification_loss,
    "ForSequenceClassificationLoss": ours.sequence_classification_loss,
    "ForQuestionAnsweringLoss": ours.question_answering_loss,
    "ForSemanticSegmentationLoss": ours.semantic_segmentation_loss,
}
_OURS: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(loss_utils, name): loss for name, loss in _NAMES.items() if hasattr(loss_utils, name)
}
_STOCK = {loss: stock for stock, loss in _OURS.items()}


def enable(model: PreTrainedModel | None = None) -> None:
    """Give every model of transformers, or one, losses of the same arguments and numbers from the fused kernels.

    They read 16-bit logits as they are, where the stock ones make a float32 copy, and honour ``num_items_in_batch``,
    ``shift_labels`` and ``ignore_index``. Without a model, Trainer's label smoothing is replaced too. Models that call
    :mod:`torch.nn.functional` themselves are what :func:`fused_losses.patch` is for. May be called any number of times.

    Args:
        model: the one whose ``loss_function`` to replace; ``None``: the table that all models look theirs up in.

    Raises:
        TypeError: ``model`` is none of transformers', or its loss is none that there is a replacement for.
    """
    if model is None:
        _replace(_OURS)
        LabelSmoother.__call__ = _smoothed_loss
        return
    _checked(model)
    loss = model.loss_function
    if loss in _OURS:
        model.loss_function = _OURS[loss]
    elif loss not in _STOCK:
        raise TypeError(f"{_name(loss)}, the loss of {type(model).__name__}, has no fused replacement")


def disable(model: PreTrainedModel | None = None) -> None:
    """Undo :func:`enable`; of a model, also :func:`fused_linear_head`.

    Raises:
        TypeError: as :func:`unfused_linear_head`, or ``model`` is none of transformers'.
    """
    if model is None:
        _replace(_STOCK)
        LabelSmoother.__call__ = _stock_smoothed_loss
        return
    unfused_linear_head(model)
    loss = vars(model).get("_loss_function")
    if loss in _STOCK:
        del model._loss_function
        stock = _STOCK[loss]
        if model.loss_function not in (stock, loss):  # it had this one by itself
            model.loss_function = stock


def is_enabled(model: PreTrainedModel | None = None) -> bool:
    """Whether every model, or this one, has fused losses now."""
    if model is not None:
        return _checked(model).loss_function in _STOCK
    return any(loss in _STOCK for loss in loss_utils.LOSS_MAPPING.values())


def fused_linear_head(model: PreTrainedModel) -> None:
    """Train a causal language model without its logits.

    In training its head gives deferred logits (``integrations/deferred_logits.py``), from which the loss is computed
    by :func:`fused_losses.functional.linear_cross_entropy`; a scale and a softcap after the head (Cohere,
    Granite, Gemma 2) become that function's. Whoever reads the logits all the same, as a metric does, has them made.
    In evaluation, under ``no_grad`` and in ``torch.compile`` the head is what it was. To be called before
    :func:`torch.distributed.fsdp.fully_shard`; a head that is sharded by itself keeps its weight until the backward.

    Args:
        model: any whose loss is ``ForCausalLMLoss`` and whose head is a plain :class:`torch.nn.Linear`, tied or not.

    Raises:
        TypeError: it is not.
    """
    _checked(model)
    loss = model.loss_function
    if loss not in (causal_lm_loss, _STOCK[causal_lm_loss]):
        raise TypeError(f"fused_linear_head is for causal models; the loss of {type(model).__name__} is {_name(loss)}")
    head = _head(model)
    if isinstance(head, DeferringLinear):
        return
    if type(head) is not nn.Linear:
        raise TypeError(
            f"fused_linear_head needs a head that is a torch.nn.Linear, not {type(head).__module__}."
            f"{type(head).__qualname__}: leave the head out of what adapters or quantization wrap, and call "
            "fused_linear_head before fully_shard"
        )
    if "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks:
        raise TypeError("fused_linear_head needs a head without hooks and without a forward of its own")
    head.__class__ = DeferringLinear
    model.loss_function = causal_lm_loss


def unfused_linear_head(model: PreTrainedModel) -> None:
    """Undo :func:`fused_linear_head`. The loss stays fused: see :func:`disable`.

    Raises:
        TypeError: the head was sharded by itself since, or ``model`` is none of transformers'.
    """
    head = _head(_checked(model))
    if type(head) is DeferringLinear:
        head.__class__ = nn.Linear  # type: ignore[assignment]
    elif isinstance(head, DeferringLinear):
        raise TypeError("fully_shard has made the head one of its modules: unfused_linear_head was to be called before")


def _checked(model: Any) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"expected a transformers.PreTrainedModel, got {type(model).__module__}.{type(model).__qualname__}: "
            "of a wrapper, give the model inside (PEFT: model.get_base_model())"
        )
    return model


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", repr(loss))


def _replace(replacements: dict[Callable[..., Any], Callable[..., Any]]) -> None:
    """In the table of losses; and by name in Trainer, which asks whether a loss *is* that of causal models: by that it
    counts the items of a batch."""
    modules = [loss_utils, *filter(None, [sys.modules.get("transformers.trainer")])]
    for holder in list(holders_of(replacements, modules)):
        holder.exchange(holder.function, replacements[holder.function])


_stock_smoothed_loss = LabelSmoother.__call__


def _smoothed_loss(
    self: LabelSmoother,
    model_output: Any,
    labels: Tensor,
    shift_labels: bool = False,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    return label_smoothing_loss(
        ours._logits_of(model_output),
        labels,
        epsilon=self.epsilon,
        ignore_index=self.ignore_index,
        shift_labels=shift_labels,
        num_items_in_batch=num_items_in_batch,
    )
