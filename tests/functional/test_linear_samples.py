"""PyTorch's own samples and bad inputs of linear_cross_entropy (its OpInfo database): ours against torch's."""

import warnings

import pytest
import torch
from test_pytorch_samples import assert_close_to_torchs, second_gradients, value_and_gradients
from torch.testing._internal.common_methods_invocations import op_db

from fused_losses.autograd import linear_chunks
from fused_losses.functional import linear_cross_entropy
from fused_losses.torch_losses import torch_function

VARIANTS = [op for op in op_db if op.name == "nn.functional.linear_cross_entropy"]
if not VARIANTS:
    pytest.skip("this torch has no linear_cross_entropy", allow_module_level=True)

torchs = torch_function("linear_cross_entropy")


def without_options(sample):
    """Torch's chunks are less exact than its layer and loss apart, and have no second derivative."""
    return lambda *arguments, options=None, **others: torchs(*arguments, **others)


@pytest.fixture(params=[None, 2], ids=["one chunk", "chunks of two"])
def chunks(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(linear_chunks, "rows_of_chunk", lambda *sizes: request.param)


@pytest.mark.parametrize("op", VARIANTS, ids=lambda op: op.variant_test_name or "plain")
def test_values_and_gradients(op, chunks):
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        ours = value_and_gradients(linear_cross_entropy, sample)
        assert_close_to_torchs(ours, value_and_gradients(without_options(sample), sample))


@pytest.mark.parametrize("op", VARIANTS, ids=lambda op: op.variant_test_name or "plain")
def test_second_gradients(op):
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        ours = second_gradients(linear_cross_entropy, sample)
        assert_close_to_torchs(ours, second_gradients(without_options(sample), sample))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_in_other_types(dtype):
    """Beside torch in float64, with the roundings of float32 and one of the result's type."""
    for sample in VARIANTS[0].sample_inputs("cpu", dtype, requires_grad=False):
        arguments = [sample.input, *sample.args]
        ours = linear_cross_entropy(*arguments, **sample.kwargs)
        in_double = [value.double() if value.is_floating_point() else value for value in arguments]
        options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}
        expected = torchs(*in_double, **options)
        assert ours.dtype == torchs(*arguments, **sample.kwargs).dtype
        torch.testing.assert_close(ours.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_errors_are_torchs():
    count = 0
    for error in VARIANTS[0].error_inputs_func(VARIANTS[0], "cpu"):
        sample = error.sample_input
        if "dimensionality 1 or 2, got 3" in error.error_regex:  # ours takes more axes
            continue
        count += 1
        with pytest.raises(error.error_type, match=error.error_regex):
            linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
    assert count >= 4


def test_what_torchs_chunks_warn_of_is_no_warning():
    input, weight, target = torch.randn(4, 3), torch.randn(5, 3), torch.randint(5, (4,))
    options = torch.nn.LinearCrossEntropyOptions()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = linear_cross_entropy(input, weight, target, label_smoothing=0.1, options=options)
    torch.testing.assert_close(ours, torchs(input, weight, target, label_smoothing=0.1))
