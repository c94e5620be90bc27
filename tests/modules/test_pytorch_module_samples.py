"""PyTorch's own sample inputs and bad inputs of the four modules (its ModuleInfo database), run through our modules."""

import dataclasses

import pytest
import torch
from losses import LOSSES
from parity import check_parity
from torch.testing._internal.common_modules import module_db

LOSS_OF_MODULE = {loss.torch_module: loss for loss in LOSSES}
MODULE_INFOS = {info.module_cls: info for info in module_db if info.module_cls in LOSS_OF_MODULE}
LOSS_AND_DTYPE = [
    pytest.param(LOSS_OF_MODULE[cls], dtype, id=f"{cls.__name__}-{dtype}")
    for cls, info in MODULE_INFOS.items()
    for dtype in info.dtypes
]


def samples_of(loss, device, dtype):
    info = MODULE_INFOS[loss.torch_module]
    return list(info.module_inputs_func(info, device, dtype, False, training=True))


def as_functions(loss):
    """The loss computed by a module, constructed for the call with its options."""
    return dataclasses.replace(
        loss,
        ours=lambda input, target, **options: loss.our_module(**options)(input, target),
        torchs=lambda input, target, **options: loss.torch_module(**options)(input, target),
    )


def test_all_four_modules_are_in_pytorchs_database():
    assert MODULE_INFOS.keys() == LOSS_OF_MODULE.keys()


@pytest.mark.parametrize(("loss", "dtype"), LOSS_AND_DTYPE)
def test_pytorchs_samples(loss, dtype, device):
    samples = samples_of(loss, device, dtype)
    assert samples
    for sample in samples:
        assert not sample.constructor_input.args and not sample.forward_input.kwargs
        check_parity(as_functions(loss), *sample.forward_input.args, **sample.constructor_input.kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_pytorchs_reference_function(loss, dtype, device):
    """The values of the database's own reference implementations, to the tolerance of PyTorch's own test."""
    num_compared = 0
    for sample in samples_of(loss, device, dtype):
        if sample.reference_fn is None:
            continue
        module = loss.our_module(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        arguments = sample.forward_input.args
        torch.testing.assert_close(module(*arguments), sample.reference_fn(module, *arguments))
        num_compared += 1
    assert num_compared > 0


@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if MODULE_INFOS[loss.torch_module].module_error_inputs_func], ids=repr
)
def test_pytorchs_bad_inputs(loss, device):
    info = MODULE_INFOS[loss.torch_module]
    bad_inputs = list(info.module_error_inputs_func(info, device, torch.float32, False, training=True))
    assert bad_inputs
    for bad in bad_inputs:
        sample = bad.module_error_input
        with pytest.raises(bad.error_type, match=bad.error_regex):
            module = loss.our_module(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            module(*sample.forward_input.args, **sample.forward_input.kwargs)
