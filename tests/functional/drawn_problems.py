"""Hypothesis strategies: whole calls of a loss, of any shape, stride, dtype, option and special value."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from layouts import LAYOUTS, contiguous
from losses import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, FLOAT_DTYPES, REDUCTIONS, Loss


@dataclass
class Problem:
    loss: Loss
    input: torch.Tensor
    target: torch.Tensor
    grad_output: torch.Tensor
    options: dict = field(default_factory=dict)


# Infinities, NaN, numbers whose exponential over- and underflows, zeros of both signs, and the subnormal of each dtype.
SPECIAL_LOGITS = [torch.inf, -torch.inf, torch.nan, 1e4, -1e4, 100.0, -100.0, 0.0, -0.0, "subnormal"]

# Both ends, where the logarithm is clamped; the subnormal, where it would pass the clamp; next to 1; the middle.
SPECIAL_PROBABILITIES = [0.0, 1.0, "subnormal", "below one", 0.5]

shapes_with_classes = st.one_of(
    st.tuples(st.integers(1, 70)),
    st.tuples(st.integers(0, 9), st.integers(1, 70)),
    st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
)
seeds = st.integers(0, 2**32 - 1)


def number(special, dtype):
    info = torch.finfo(dtype)
    return {"subnormal": info.smallest_normal / 4, "below one": 1 - info.eps}.get(special, special)


@st.composite
def values(draw, shape, dtype, specials):
    """Normal numbers of a drawn spread, special ones scattered in, in a drawn layout."""
    generator = torch.Generator().manual_seed(draw(seeds))
    drawn = draw(st.sampled_from([0.1, 5.0, 60.0])) * torch.randn(shape, generator=generator, dtype=torch.float64)
    drawn = drawn.sigmoid() if specials is SPECIAL_PROBABILITIES else drawn
    drawn = drawn.to(dtype)
    for position in draw(st.lists(st.integers(0, 10**6), max_size=5)):
        if drawn.numel():
            drawn.view(-1)[position % drawn.numel()] = number(draw(st.sampled_from(specials)), dtype)
    return draw(layouts(drawn.dim()))(drawn)


def layouts(dim):
    """Those of `layouts.py` that a tensor of this many axes can have; without a batch axis there is only one."""
    return st.sampled_from(LAYOUTS if dim >= 2 else [contiguous])


def grad_outputs(draw, shape, reduction, dtype):
    generator = torch.Generator().manual_seed(draw(seeds))
    return torch.randn(shape if reduction == "none" else (), generator=generator).to(dtype)


@st.composite
def class_problems(draw, loss):
    shape, dtype = draw(shapes_with_classes), draw(st.sampled_from(FLOAT_DTYPES))
    reduction = draw(st.sampled_from(REDUCTIONS))
    class_dim = 0 if len(shape) == 1 else 1
    num_classes, rows_shape = shape[class_dim], shape[:class_dim] + shape[class_dim + 1 :]
    options = {"reduction": reduction}
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(seeds))
        options["weight"] = torch.rand(num_classes, generator=generator).to(dtype)
    if loss is CROSS_ENTROPY:
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
    if loss is CROSS_ENTROPY and draw(st.booleans()):
        target = draw(values(shape, dtype, [0.0, 1.0])).abs()
    else:
        target, options["ignore_index"] = draw(class_indices(num_classes, rows_shape))
    grad_output = grad_outputs(draw, rows_shape, reduction, dtype)
    return Problem(loss, draw(values(shape, dtype, SPECIAL_LOGITS)), target, grad_output, options)


@st.composite
def class_indices(draw, num_classes, shape):
    generator = torch.Generator().manual_seed(draw(seeds))
    target = torch.randint(num_classes, shape, generator=generator)
    ignore_index = draw(st.sampled_from([-100, 0, num_classes - 1, 255]))
    ignored_fraction = draw(st.sampled_from([0.0, 0.3, 1.0]))
    ignored = torch.rand(shape, generator=generator) < ignored_fraction
    target = torch.where(ignored, ignore_index, target).to(draw(st.sampled_from([torch.int64, torch.int32])))
    return target, ignore_index


@st.composite
def binary_problems(draw, loss):
    shape = draw(st.one_of(st.tuples(st.integers(0, 300)), shapes_with_classes))
    dtype, reduction = draw(st.sampled_from(FLOAT_DTYPES)), draw(st.sampled_from(REDUCTIONS))
    options = {"reduction": reduction}
    factors = ["weight"] if loss is BINARY_CROSS_ENTROPY else ["weight", "pos_weight"]
    for factor in factors:
        if draw(st.booleans()):
            generator = torch.Generator().manual_seed(draw(seeds))
            broadcast = [size if draw(st.booleans()) else 1 for size in shape]
            options[factor] = torch.rand(broadcast, generator=generator).to(dtype)
    specials = SPECIAL_PROBABILITIES if loss is BINARY_CROSS_ENTROPY else SPECIAL_LOGITS
    # Multiples of 1/256: a target near the least subnormal times a weight is 0 or not depending on the precision.
    target = draw(values(shape, dtype, SPECIAL_PROBABILITIES)).mul(256).round().div(256)
    return Problem(
        loss, draw(values(shape, dtype, specials)), target, grad_outputs(draw, shape, reduction, dtype), options
    )
