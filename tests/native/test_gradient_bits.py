"""A gradient has the same bits whichever operators made it: the forward, a backward from statistics, a rescaling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from losses import FLOAT_DTYPES, sample_class_probabilities

from fused_losses import _C, _ops

NONE, MEAN, SUM = range(3)
SCALE = 0.375  # of a loss; every type holds it, and 1 / 3 of the mean below rounds

# One of every way through memory: few classes, transposed; batches of rows; one block of a row and two; many blocks
# with their maxima in the last; more classes than a stash holds, which are read twice; a strided class axis in one
# chunk and in two.
SHAPES = [(21, 10), (19, 100), (3, 1000), (3, 1025), (2, 9000), (1, 2**18 + 100), (3, 21, 40), (3, 100, 30)]
EMULATED_SHAPES = [shape for shape in SHAPES if shape != (1, 2**18 + 100)]

TARGETS = ["index", "weighted", "smoothed", "smoothed_weighted", "probability", "probability_weighted"]


def cross_entropy_problem(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float]:
    """Logits that grow along the classes, so that most blocks raise the maximum; target, weight and smoothing."""
    rise = torch.linspace(0, 3, shape[1]).view(1, -1, *(1,) * (len(shape) - 2))
    logits = (3 * torch.randn(shape) + rise).to(dtype)
    if kind.startswith("probability"):
        target = sample_class_probabilities(shape, dtype)
    else:
        target = torch.randint(shape[1], shape[:1] + shape[2:])
        target.view(-1)[1:2] = -100
    weight = torch.linspace(0.5, 2, shape[1]).to(dtype) if "weighted" in kind else None
    return logits, target, weight, 0.1 if "smoothed" in kind or kind == "probability_weighted" else 0.0


def scalar(value: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def check_cross_entropy(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    logits, target, weight, smoothing = cross_entropy_problem(shape, dtype, kind)
    # The last one is neither dense nor, for rows, contiguous along the classes.
    for values in (logits, logits.transpose(1, -1).contiguous().transpose(1, -1), logits.repeat(2, 1, *shape[2:])[::2]):
        for reduction in (MEAN, SUM):
            options = (-100, smoothing, False)
            operands = (values[: shape[0], ..., : shape[-1]], target, weight)
            _, gradient = _ops.cross_entropy_with_gradient(*operands, SCALE, reduction, *options)
            _, statistics = _ops.cross_entropy_with_statistics(*operands, reduction, *options)
            grad_output = scalar(SCALE, dtype)
            backward = _ops.cross_entropy_backward(grad_output, *operands, statistics, reduction, *options)
            assert torch.equal(gradient, backward)
        losses, statistics = _ops.cross_entropy_with_statistics(*operands, NONE, *options)
        expanded = scalar(SCALE, dtype).expand(losses.shape)
        assert torch.equal(gradient, _ops.cross_entropy_backward(expanded, *operands, statistics, NONE, *options))


@pytest.fixture(params=_C.available_cpu_capabilities())
def capability(request: pytest.FixtureRequest) -> object:
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_on_every_processor(
    capability: str, shape: tuple[int, ...], dtype: torch.dtype, kind: str
) -> None:
    check_cross_entropy(shape, dtype, kind)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_cross_entropy_on_every_device(device: str, dtype: torch.dtype, kind: str) -> None:
    for shape in EMULATED_SHAPES:
        check_cross_entropy(shape, dtype, kind)


def test_streamed_rows() -> None:
    """Streamed where the forward made it, as 64 MiB are; not in batches then, whatever the number of classes."""
    for num_classes in (600, 3000):
        logits = torch.randn(2**24 // num_classes + 1, num_classes)
        operands = (logits, torch.randint(num_classes, logits.shape[:1]), None)
        _, gradient = _ops.cross_entropy_with_gradient(*operands, SCALE, MEAN, -100, 0.1, False)
        _, statistics = _ops.cross_entropy_with_statistics(*operands, MEAN, -100, 0.1, False)
        grad_output = torch.tensor(SCALE)
        assert torch.equal(
            gradient, _ops.cross_entropy_backward(grad_output, *operands, statistics, MEAN, -100, 0.1, False)
        )


ELEMENTWISE = {
    "binary_cross_entropy": lambda shape: (torch.rand(shape),),
    "binary_cross_entropy_with_logits": lambda shape: (3 * torch.randn(shape), torch.rand(shape[-1]) + 0.5),
}


def check_elementwise(name: str, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    with_gradient: Callable[..., tuple[torch.Tensor, torch.Tensor]] = getattr(_ops, f"{name}_with_gradient")
    backward: Callable[..., torch.Tensor] = getattr(_ops, f"{name}_backward")
    for shape in ((3, 5), (7, 301)):
        input, *pos_weight = (values.to(dtype) for values in ELEMENTWISE[name](shape))
        target, weight = torch.rand(shape).to(target_dtype), torch.rand(shape[-1]).to(dtype)
        no_pos_weight = [None] * len(pos_weight)
        for operands in ((input, target, None, *no_pos_weight), (input, target, weight, *pos_weight)):
            grad_output = torch.tensor(SCALE, dtype=target_dtype)
            for reduction in (MEAN, SUM):
                _, gradient = with_gradient(*operands, reduction, SCALE)
                assert torch.equal(gradient, backward(grad_output, *operands, reduction))
            assert torch.equal(gradient, backward(grad_output.expand(shape), *operands, NONE))
            assert torch.equal(gradient, backward(grad_output.repeat(shape), *operands, NONE))


def elementwise_dtypes() -> list[tuple[torch.dtype, torch.dtype]]:
    mixed = [(dtype, torch.float32) for dtype in (torch.bfloat16, torch.float16)]
    return [*((dtype, dtype) for dtype in FLOAT_DTYPES), *mixed]


@pytest.mark.parametrize("dtypes", elementwise_dtypes(), ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_binary_on_every_processor(capability: str, name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_elementwise(name, *dtypes)


@pytest.mark.parametrize("dtypes", elementwise_dtypes(), ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_binary_on_every_device(device: str, name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_elementwise(name, *dtypes)


# logit_scale, softcap, lse_square_scale, focal_gamma
TERMS = ((1.0, 0.0, 0.0, 0.0), (-0.7, 0.0, 1e-2, 0.0), (1.4, 3.0, 1e-2, 0.0))
FOCAL_TERMS = ((1.0, 0.0, 0.0, 1.5), (1.4, 3.0, 1e-2, 0.5))


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("device", ["emulated"], indirect=True)
def test_rescaling_cross_entropy(device: str, dtype: torch.dtype, kind: str) -> None:
    """What a GPU does with the gradient that its forward made: anew for another grad_output, nothing for the same."""
    for shape in EMULATED_SHAPES:
        *operands, smoothing = cross_entropy_problem(shape, dtype, kind)
        takes_focal_terms = smoothing == 0 and not operands[1].is_floating_point()
        for terms in TERMS + (FOCAL_TERMS if takes_focal_terms else ()):
            options = (MEAN, -100, smoothing, False, *terms)
            _, rescaled = _ops.cross_entropy_with_gradient(*operands, 1.0, *options)
            _ops.cross_entropy_rescale_gradient(scalar(SCALE, dtype), rescaled, 1.0, *operands, *options)
            _, gradient = _ops.cross_entropy_with_gradient(*operands, SCALE, *options)
            assert torch.equal(gradient, rescaled)
            prepared = rescaled.fill_(7)
            _ops.cross_entropy_rescale_gradient(scalar(SCALE, dtype), prepared, SCALE, *operands, *options)
            assert (prepared == 7).all()


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
def test_rescaling_where_no_kernel_walks_the_gradient(device: str) -> None:
    logits, target = torch.randn(2, 5, 4, 3).transpose(2, 3), torch.randint(5, (2, 3, 4))
    options = (MEAN, -100, 0.0, False)
    _, rescaled = _ops.cross_entropy_with_gradient(logits, target, None, 1.0, *options)
    _ops.cross_entropy_rescale_gradient(torch.tensor(SCALE), rescaled, 1.0, logits, target, None, *options)
    _, gradient = _ops.cross_entropy_with_gradient(logits.contiguous(), target, None, SCALE, *options)
    assert torch.equal(gradient, rescaled)
    assert rescaled.stride() == logits.stride()
    with pytest.raises(RuntimeError, match="not that of this call"):
        arguments = (torch.tensor(SCALE), rescaled.contiguous(), 1.0, logits, target, None)
        _ops.cross_entropy_rescale_gradient(*arguments, *options)


@pytest.mark.parametrize("dtypes", elementwise_dtypes(), ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("device", ["emulated"], indirect=True)
def test_rescaling_binary(device: str, name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, target_dtype = dtypes
    input, *pos_weight = (values.to(dtype) for values in ELEMENTWISE[name]((7, 301)))
    arguments = (input, torch.rand(7, 301).to(target_dtype), None, *pos_weight, MEAN)
    _, rescaled = getattr(_ops, f"{name}_with_gradient")(*arguments)
    rescale = getattr(_ops, f"{name}_rescale_gradient")
    rescale(torch.tensor(SCALE, dtype=target_dtype), rescaled, 1.0, *arguments)
    _, gradient = getattr(_ops, f"{name}_with_gradient")(*arguments, SCALE)
    assert torch.equal(gradient, rescaled)
    prepared = rescaled.fill_(7)
    rescale(torch.tensor(SCALE, dtype=target_dtype), prepared, SCALE, *arguments)
    assert (prepared == 7).all()
