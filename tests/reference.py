"""The four losses from their definitions, in float64 and elementary torch operations: the independent reference.

Nothing here calls a loss function of torch or of fused_losses. The gradient of the class losses is what autograd makes
of the formula; that of the binary ones is written out, because autograd knows no gradient at infinite logits, and
because the clamped logarithm of binary_cross_entropy has a gradient of its own. `test_reference.py` checks all of it.

Beside each value stand its *terms*: the sum of the magnitudes that are added and subtracted to form it. A computation
in another precision commits its rounding errors on the terms, not on the (possibly much smaller) value, so an error
bound is a number of roundings times the terms.
"""

from typing import NamedTuple

import torch


class Reference(NamedTuple):
    loss: torch.Tensor
    gradient: torch.Tensor
    loss_terms: torch.Tensor
    gradient_terms: torch.Tensor


def log_probabilities(logits):
    shifted = logits - logits.amax(class_dim(logits), keepdim=True).detach()
    return shifted - shifted.exp().sum(class_dim(logits), keepdim=True).log()


def class_dim(logits):
    return 0 if logits.dim() == 1 else 1


def along_classes(weight, logits):
    """The class weights (C) as a view that broadcasts over logits (C) or (N, C, d1, ...)."""
    return weight.view([-1] + [1] * (logits.dim() - 1 - class_dim(logits)))


def reduce(losses, reduction, divisor):
    if reduction == "none":
        return losses
    return losses.sum() / divisor if reduction == "mean" else losses.sum()


def expected_negative_log_likelihood(
    log_probability, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Cross-entropy after the log-softmax; with class indices and no smoothing this is also nll_loss."""
    dim = class_dim(log_probability)
    num_classes = log_probability.size(dim)
    class_weight = torch.ones(num_classes).to(log_probability) if weight is None else weight
    class_losses = -along_classes(class_weight, log_probability) * log_probability
    if target.is_floating_point():
        smoothed = target * (1 - label_smoothing) + label_smoothing / num_classes
        losses = (smoothed * class_losses).sum(dim)
        return reduce(losses, reduction, divisor=losses.numel())
    kept = target != ignore_index
    index = torch.where(kept, target, 0).long()
    losses = class_losses.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing / num_classes * class_losses.sum(dim)
    losses = torch.where(kept, losses, 0)
    return reduce(losses, reduction, divisor=torch.where(kept, class_weight[index], 0).sum())


def nll_loss(input, target, grad_output, **options):
    log_probability = input.requires_grad_()
    loss = expected_negative_log_likelihood(log_probability, target, **options)
    (per_unit,) = torch.autograd.grad(loss, log_probability, torch.ones_like(loss), retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, log_probability, grad_output)
    return Reference(loss, gradient, loss_terms(loss, per_unit, log_probability), gradient.abs())


def cross_entropy(input, target, grad_output, **options):
    logits = input.requires_grad_()
    log_probability = log_probabilities(logits)
    loss = expected_negative_log_likelihood(log_probability, target, **options)
    (per_unit,) = torch.autograd.grad(loss, log_probability, torch.ones_like(loss), retain_graph=True)
    gradient, to_log_probability = torch.autograd.grad(loss, (logits, log_probability), grad_output)
    # d loss / d logits = u - p * sum(u), where u = d loss / d log_probability; the relative error of p = exp(x - max) /
    # sum grows with |x - max|, because that difference is rounded before the exponential.
    u = to_log_probability.abs()
    p = zero_times_anything(log_probability.exp(), log_probability.abs().clamp(min=1))
    gradient_terms = u + p * u.sum(class_dim(logits), keepdim=True)
    return Reference(loss, gradient, loss_terms(loss, per_unit, log_probability), gradient_terms)


def loss_terms(loss, per_unit, log_probability):
    """Each log-probability counts with its magnitude, and at least with 1: the sum whose logarithm is taken is >= 1."""
    used = torch.where(per_unit == 0, 0, per_unit.abs() * log_probability.abs().clamp(min=1))
    per_row = used.sum(class_dim(log_probability))
    return per_row if loss.shape == per_row.shape else per_row.sum()


def binary_cross_entropy_with_logits(input, target, grad_output, weight=None, pos_weight=None, reduction="mean"):
    """-w [ p t log(sigmoid(x)) + (1 - t) log(1 - sigmoid(x)) ], with 0 * log(0) = 0 also at infinite logits."""
    weight = torch.ones(()).to(input) if weight is None else weight
    pos_weight = torch.ones(()).to(input) if pos_weight is None else pos_weight
    positive = zero_times_anything(pos_weight * target, softplus(-input))
    negative = zero_times_anything(1 - target, softplus(input))
    loss = reduce(weight * (positive + negative), reduction, divisor=input.numel())
    terms = reduce(weight.abs() * (positive.abs() + negative.abs()), reduction, divisor=input.numel())
    scale = grad_output * weight / (input.numel() if reduction == "mean" else 1)
    away, towards = (1 - target) * input.sigmoid(), pos_weight * target * (-input).sigmoid()
    return Reference(loss, scale * (away - towards), terms, scale.abs() * (away.abs() + towards.abs()))


def softplus(x):
    """log(1 + exp(x)) = -log(sigmoid(-x)), without overflow."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


def zero_times_anything(factor, value):
    return torch.where(factor == 0, 0, factor * value)


def binary_cross_entropy(input, target, grad_output, weight=None, reduction="mean"):
    """-w [ t max(log(x), -100) + (1 - t) max(log(1 - x), -100) ]; gradient w (x - t) / max(x (1 - x), 1e-12).

    The clamps are torch's documented ones. The gradient is not the derivative of the clamped loss: it stays finite and
    keeps pointing away from a wrong answer where the clamped logarithm is flat.
    """
    weight = torch.ones(()).to(input) if weight is None else weight
    positive = -target * input.log().clamp(min=-100)
    negative = -(1 - target) * (-input).log1p().clamp(min=-100)
    loss = reduce(weight * (positive + negative), reduction, divisor=input.numel())
    terms = reduce(weight.abs() * (positive.abs() + negative.abs()), reduction, divisor=input.numel())
    scale = grad_output * weight / (input.numel() if reduction == "mean" else 1)
    gradient = scale * (input - target) / ((1 - input) * input).clamp(min=1e-12)
    return Reference(loss, gradient, terms, gradient.abs())


FORMULAS = {
    formula.__name__: formula
    for formula in (cross_entropy, nll_loss, binary_cross_entropy, binary_cross_entropy_with_logits)
}


def evaluate(loss_name, input, target, grad_output=None, **options):
    """The loss and its gradient with respect to the input, of arguments in any precision, in float64."""

    def in_float64(value):
        is_float = torch.is_tensor(value) and value.is_floating_point()
        return value.detach().double() if is_float else value

    input, target = in_float64(input), in_float64(target)
    grad_output = torch.ones(()).to(input) if grad_output is None else in_float64(grad_output)
    if options.get("reduction") == "none":
        elementwise = loss_name.startswith("binary")
        grad_output = grad_output.expand(input.shape if elementwise else without_class_dim(input))
    options = {name: in_float64(value) for name, value in options.items()}
    return Reference(*(result.detach() for result in FORMULAS[loss_name](input, target, grad_output, **options)))


def without_class_dim(logits):
    return logits.shape[: class_dim(logits)] + logits.shape[class_dim(logits) + 1 :]
