"""Comparison of ours with torch's: same dtype, same shape, same infinities and NaNs, and no larger error.

The error of both is taken against the float64 reference, and ours has to satisfy, element by element,

    error(ours) <= largest error(torch) + half a unit in the last place of the result + slack

* Half a unit in the last place: both results are rounded to the result's dtype, and a value that lies halfway between
  two neighbours may go either way.
* The slack is 4 epsilon of the *compute* dtype times the terms of the reference, that is, eight roundings of half a
  unit: subtract the maximum, exponential (two), sum, quotient, minus the target, times the scale, the scale itself. One
  float32 algorithm may be lucky where another is not; eight roundings are what any of them may use. In float64 the
  reference has the same roundings behind it, so it gets them twice.
* 16-bit inputs are computed in float32 (and so is torch, for this comparison, on the same inputs): a 16-bit result must
  be the rounded float32 one, which is far more exact than what torch does in 16 bits.
"""

from typing import NamedTuple

import torch
from reference import evaluate


class Outcome(NamedTuple):
    loss: torch.Tensor
    gradient: torch.Tensor


def run(function, input, target, grad_output=None, **options):
    """The loss and its gradient; the input keeps its strides and its storage."""
    leaf = input.detach().requires_grad_()
    loss = function(leaf, target, **options)
    if grad_output is None:
        grad_output = torch.ones_like(loss)
    (gradient,) = torch.autograd.grad(loss, leaf, grad_output.to(loss.dtype))
    return Outcome(loss.detach(), gradient)


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_in_last_place(values, dtype):
    """The distance between neighbours of `dtype` at float64 `values`; constant below the smallest normal number."""
    info = torch.finfo(dtype)
    magnitude = values.abs().clamp(min=info.smallest_normal)
    return torch.ldexp(torch.full_like(magnitude, info.eps), magnitude.frexp().exponent - 1)


def rounding_slack(terms, dtype):
    reference_has_them_too = 2 if dtype == torch.float64 else 1
    info = torch.finfo(compute_dtype(dtype))
    return reference_has_them_too * (4 * info.eps * terms + info.smallest_normal)


def assert_not_less_exact(ours, torchs, reference, terms=None, what="result"):
    """See the top of this file. `torchs` may have more bits than `ours`; `terms` default to the largest magnitude."""
    assert_same_non_finite_values(ours, torchs.to(ours.dtype), what)
    dtype, compared = ours.dtype, torchs.to(ours.dtype).isfinite()
    if not compared.any():
        return
    terms = reference[compared].abs().amax() if terms is None else terms
    slack = rounding_slack(terms.expand(reference.shape)[compared], dtype)
    ours, torchs, reference = (values.double()[compared] for values in (ours, torchs, reference))
    # Where the definition gives no number and torch does (the gradient when all targets are ignored), torch's is meant.
    reference = torch.where(reference.isfinite(), reference, torchs)
    allowed = (
        (torchs - reference).abs().amax() + unit_in_last_place(reference, dtype) / 2 + slack.nan_to_num(0, posinf=0)
    )
    error = (ours - reference).abs()
    worst = (error - allowed).argmax()
    assert error[worst] <= allowed[worst], (
        f"{what}: {int((error > allowed).sum())} of {error.numel()} too inexact; the worst is {ours[worst].item()!r} "
        f"for {reference[worst].item()!r}: error {error[worst].item():.3e}, allowed {allowed[worst].item():.3e}, "
        f"torch's largest error {(torchs - reference).abs().amax().item():.3e}"
    )


def assert_same_non_finite_values(ours, torchs, what):
    for description, is_such in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        assert torch.equal(is_such(ours), is_such(torchs)), (
            f"{what}: {description} in other places than torch's:\n{ours}\n{torchs}"
        )


def check_parity(loss, input, target, grad_output=None, **options):
    """Ours against torch's: dtype and shape of loss and gradient, and no larger error than torch's in either."""
    ours = run(loss.ours, input, target, grad_output, **options)
    grad_output = None if grad_output is None else grad_output.to(ours.loss.dtype)
    # Torch takes int64 targets for every shape (uint8 only without inner axes, int32 never), and its spatial nll_loss
    # has a backward for contiguous inputs only: it is given what it takes.
    input_of_torch, target_of_torch = input.contiguous(), target if target.is_floating_point() else target.long()
    torchs = run(loss.torchs, input_of_torch, target_of_torch, grad_output, **options)
    for name, our_result, torchs_result in zip(Outcome._fields, ours, torchs, strict=True):
        assert our_result.dtype == torchs_result.dtype, f"{name}: {our_result.dtype}, torch's {torchs_result.dtype}"
        assert our_result.shape == torchs_result.shape, f"{name}: {our_result.shape}, torch's {torchs_result.shape}"
    if input.dtype in (torch.bfloat16, torch.float16):
        in_float32_too = in_float32(input_of_torch, target_of_torch, grad_output)
        torchs = run(loss.torchs, *in_float32_too, **in_float32_by_name(options))
    reference = evaluate(loss.name, input, target, grad_output, **options)
    assert_not_less_exact(ours.loss, torchs.loss, reference.loss, reference.loss_terms, what="loss")
    assert_not_less_exact(ours.gradient, torchs.gradient, reference.gradient, reference.gradient_terms, what="gradient")


def in_float32(*values):
    return tuple(value.float() if torch.is_tensor(value) and value.is_floating_point() else value for value in values)


def in_float32_by_name(options):
    return dict(zip(options, in_float32(*options.values()), strict=True))


def check_parity_of_mixed_dtypes(loss, input, target, **options):
    """Arguments of several dtypes: torch rounds between its steps, ours may do so too, but not more often."""
    ours, torchs = run(loss.ours, input, target, **options), run(loss.torchs, input, target, **options)
    exact = run(loss.torchs, input.double(), target.double(), **options)
    coarsest = max(torch.finfo(input.dtype).eps, torch.finfo(target.dtype).eps)
    for our_result, torchs_result, exact_result in zip(ours, torchs, exact, strict=True):
        assert our_result.dtype == torchs_result.dtype
        rounded_once_more = 2 * coarsest * exact_result.abs().amax()
        error_of_torch = (torchs_result.double() - exact_result).abs().amax()
        assert (our_result.double() - exact_result).abs().amax() <= error_of_torch + rounded_once_more
    return ours
