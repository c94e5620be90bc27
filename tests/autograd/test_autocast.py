"""Under autocast the dtypes of loss and gradient are torch's, and the loss is no less exact."""

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_LOSSES,
    CROSS_ENTROPY,
    FLOAT_DTYPES,
    LOSSES,
    NLL_LOSS,
    REDUCTIONS,
    sample,
    sample_class_probabilities,
    sample_input,
)
from parity import assert_not_less_exact, run
from reference import evaluate

AUTOCAST_DTYPES = [torch.bfloat16, torch.float16]


def refused_by_torch(loss, device):
    return loss is BINARY_CROSS_ENTROPY and device == "cuda"  # "unsafe to autocast": its 16-bit gradients overflow


def check_autocast(loss, input, target, autocast_dtype, device, **options):
    with torch.autocast(device, autocast_dtype):
        if refused_by_torch(loss, device):
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                loss.ours(input, target, **options)
            return
        ours, torchs = (run(function, input, target, **options) for function in (loss.ours, loss.torchs))
    reference = evaluate(loss.name, input, target, **options)
    for name in ("loss", "gradient"):
        our_result, torchs_result = getattr(ours, name), getattr(torchs, name)
        assert our_result.dtype == torchs_result.dtype, name
        terms = getattr(reference, name + "_terms")
        assert_not_less_exact(our_result, torchs_result, getattr(reference, name), terms, what=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("autocast_dtype", AUTOCAST_DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_input(loss, autocast_dtype, dtype, reduction, device):
    input, target = sample(loss, (6, 5), dtype, device)
    check_autocast(loss, input, target, autocast_dtype, device, reduction=reduction)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_weight_of_another_dtype(loss, dtype, weight_dtype, device):
    """A module's weight stays float32 while the logits of an autocast layer are bfloat16."""
    input, target = sample(loss, (6, 5), dtype, device)
    weight = torch.linspace(0.25, 2, 5, device=device).to(weight_dtype)
    check_autocast(loss, input, target, torch.bfloat16, device, weight=weight)


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, *BINARY_LOSSES], ids=repr)
def test_float_target_of_another_dtype(loss, dtype, target_dtype, device):
    target = sample_class_probabilities((6, 5), target_dtype, device)
    check_autocast(loss, sample_input(loss, (6, 5), dtype, device), target, torch.bfloat16, device)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("autocast_dtype", AUTOCAST_DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_16_bit_target(loss, dtype, target_dtype, autocast_dtype, reduction, device):
    """As timm's BinaryCrossEntropy builds one."""
    input, target = sample_input(loss, (6, 5), dtype, device), torch.rand(6, 5, device=device).to(target_dtype)
    check_autocast(loss, input, target, autocast_dtype, device, reduction=reduction)


@pytest.mark.parametrize("by_probability", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, NLL_LOSS], ids=repr)
def test_float64_class_weight(loss, dtype, by_probability, device):
    """Torch raises for indices, and returns float64 for probabilities."""
    input, target = sample(loss, (6, 5), dtype, device)
    if by_probability:
        target = sample_class_probabilities((6, 5), dtype, device)
    weight = torch.linspace(0.25, 2, 5, device=device, dtype=torch.float64)
    with torch.autocast(device, torch.bfloat16):
        outcomes = []
        for function in (loss.ours, loss.torchs):
            try:
                value = function(input, target, weight=weight)
                outcomes.append((value.dtype, value.item()))
            except RuntimeError as error:
                outcomes.append((type(error), str(error)))
    if isinstance(outcomes[1][1], str):
        assert outcomes[0] == outcomes[1]
    else:
        assert outcomes[0][0] == outcomes[1][0]
        assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_smoothing_and_ignored_rows(label_smoothing, device):
    logits, target = sample(CROSS_ENTROPY, (6, 5), torch.bfloat16, device)
    target[2] = -100
    check_autocast(CROSS_ENTROPY, logits, target, torch.bfloat16, device, label_smoothing=label_smoothing)


@pytest.mark.parametrize("shape", [(7, 300), (2, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, NLL_LOSS], ids=repr)
def test_long_rows_and_images(loss, shape, device):
    check_autocast(loss, *sample(loss, shape, torch.bfloat16, device), torch.bfloat16, device)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_disabled_inside_enabled(loss, device):
    input, target = sample(loss, (6, 5), torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        disabled = run(loss.ours, input, target)
    outside = run(loss.ours, input, target)
    assert disabled.loss.dtype == torch.bfloat16
    assert torch.equal(disabled.loss, outside.loss) and torch.equal(disabled.gradient, outside.gradient)


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, BINARY_LOSSES[1]], ids=repr)
def test_a_layer_and_its_loss_train_under_autocast(loss, device):
    features, target = torch.randn(16, 12, device=device), sample(loss, (16, 5), device=device)[1]
    gradients = []
    for function in (loss.ours, loss.torchs):
        torch.manual_seed(4)
        layer = torch.nn.Linear(12, 5, device=device)
        with torch.autocast(device, torch.bfloat16):
            value = function(layer(features), target)
        assert value.dtype == torch.float32
        value.backward()
        gradients.append(layer.weight.grad)
    # The gradient of the logits is bfloat16, summed over 16 rows into a bfloat16 product.
    assert gradients[0].dtype == gradients[1].dtype == torch.float32
    bound = 2 * torch.finfo(torch.bfloat16).eps * gradients[1].abs().amax().item()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=bound)
