"""The modules are torch's in everything but the kernels: constructors, repr, state, copies, devices and dtypes."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CROSS_ENTROPY,
    LOSSES,
    REDUCTIONS,
    sample,
    sample_class_probabilities,
)
from parity import run

import fused_losses


def constructor_options(loss, device="cpu"):
    """Every option of the constructor at another value than its default."""
    options = {"weight": torch.linspace(0.5, 2, 5, device=device), "reduction": "sum"}
    if loss.by_class:
        options["ignore_index"] = 3
    if loss is CROSS_ENTROPY:
        options["label_smoothing"] = 0.2
    if loss is BINARY_CROSS_ENTROPY_WITH_LOGITS:
        options["pos_weight"] = torch.linspace(1, 3, 5, device=device)
    return options


def both_modules(loss, **options):
    return loss.our_module(**options), loss.torch_module(**options)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_is_a_subclass_with_torchs_name(loss):
    assert issubclass(loss.our_module, loss.torch_module)
    assert loss.our_module.__name__ == loss.torch_module.__name__
    assert loss.our_module.__doc__ and loss.our_module.__doc__ != loss.torch_module.__doc__


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_option_reaches_the_function(loss, device):
    input, target = sample(loss, (8, 5), device=device)
    if loss.by_class:
        target[0] = 3  # an ignored one
    options = constructor_options(loss, device)
    by_module = run(loss.our_module(**options), input, target)
    by_function = run(loss.ours, input, target, **options)
    assert torch.equal(by_module.loss, by_function.loss)
    assert torch.equal(by_module.gradient, by_function.gradient)
    for name in options:
        without = {other: value for other, value in options.items() if other != name}
        assert not torch.equal(run(loss.our_module(**without), input, target).loss, by_module.loss), name


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_defaults_are_torchs(loss, device):
    input, target = sample(loss, (8, 5), device=device)
    ours, torchs = (run(module, input, target) for module in both_modules(loss))
    torch.testing.assert_close(ours, torchs, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


def test_class_probabilities(device):
    logits, _ = sample(CROSS_ENTROPY, (8, 5), device=device)
    target = sample_class_probabilities((8, 5), device=device)
    ours, torchs = (run(module, logits, target) for module in both_modules(CROSS_ENTROPY, label_smoothing=0.1))
    torch.testing.assert_close(ours, torchs, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_repr_and_extra_repr(loss):
    ours, torchs = both_modules(loss, **constructor_options(loss))
    assert repr(ours) == repr(torchs)
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), ours)
    assert repr(torchs) in repr(model)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (fused_losses.CrossEntropyLoss, dict(inplace_gradient=True, logit_scale=0.5, softcap=30.0)),
        (fused_losses.CrossEntropyLoss, dict(lse_square_scale=1e-4, focal_gamma=2.0)),
        (fused_losses.BCEWithLogitsLoss, dict(inplace_gradient=True)),
    ],
)
def test_repr_has_the_options_beyond_torchs_that_are_set(module, options):
    assert repr(module(**options)) == f"{module.__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    converted = fused_losses.convert(module.__base__())
    assert repr(converted) == repr(module()) == f"{module.__name__}()"


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_state_dict_is_exchanged_with_torchs(loss):
    options = constructor_options(loss)
    ours, torchs = both_modules(loss, **options)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    doubled = {name: 2 * value for name, value in torchs.state_dict().items()}
    assert doubled
    ours.load_state_dict(doubled)
    torchs.load_state_dict(ours.state_dict())
    for name, value in torchs.state_dict().items():
        assert torch.equal(value, doubled[name])
    input, target = sample(loss, (8, 5))
    torch.testing.assert_close(ours(input, target), torchs(input, target))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_copies_compute_the_same(loss):
    module = loss.our_module(**constructor_options(loss))
    input, target = sample(loss, (8, 5))
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ]
    for copied in copies:
        assert type(copied) is loss.our_module
        assert torch.equal(copied(input, target), module(input, target))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_deep_copy_owns_its_weight(loss):
    module = loss.our_module(weight=torch.ones(5))
    copied = copy.deepcopy(module)
    copied.weight.fill_(7)
    assert (module.weight == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_weight_follows_the_module_to_another_dtype_and_device(loss, dtype, device):
    module = loss.our_module(**constructor_options(loss)).to(device=device, dtype=dtype)
    assert module.weight.dtype == dtype and module.weight.device.type == device
    input, target = sample(loss, (8, 5), dtype, device)
    assert module(input, target).dtype == dtype


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_old_reduction_arguments(loss, reduce, size_average):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = loss.our_module(size_average=size_average, reduce=reduce)
        ours_warned = len(caught)
        torchs = loss.torch_module(size_average=size_average, reduce=reduce)
    assert ours.reduction == torchs.reduction
    assert ours_warned == len(caught) - ours_warned


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_hooks_of_the_module_run(loss):
    module = loss.our_module()
    calls = []
    module.register_forward_pre_hook(lambda module, arguments: calls.append("before"))
    module.register_forward_hook(lambda module, arguments, output: calls.append("after"))
    module.register_full_backward_hook(lambda module, to_input, to_output: calls.append("backward"))
    input, target = sample(loss, (8, 5))
    module(input.requires_grad_(), target).backward()
    assert calls == ["before", "after", "backward"]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_functional_call_replaces_the_weight(loss):
    module = loss.our_module(weight=torch.ones(5))
    input, target = sample(loss, (8, 5))
    replacement = torch.linspace(0.5, 2, 5)
    replaced = torch.func.functional_call(module, {"weight": replacement}, (input, target))
    assert torch.equal(replaced, loss.ours(input, target, weight=replacement))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_training_step_follows_torchs(loss, reduction, device):
    """Ten steps of gradient descent with either loss end at the same parameters."""
    features, target = torch.randn(32, 6, device=device), sample(loss, (32, 5), device=device)[1]
    ends = []
    for criterion in both_modules(loss, reduction=reduction):
        torch.manual_seed(5)
        layer = torch.nn.Linear(6, 5, device=device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(10):
            optimizer.zero_grad()
            output = layer(features)
            criterion(output.sigmoid() if loss.name == "binary_cross_entropy" else output, target).sum().backward()
            optimizer.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e3 * torch.finfo(torch.float32).eps)


def test_the_four_modules_are_the_packages_public_ones():
    for loss in LOSSES:
        assert getattr(fused_losses, loss.torch_module.__name__) is loss.our_module
