"""patch(), patched() and convert() replace linear_cross_entropy where torch has it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fused_losses

if not hasattr(F, "linear_cross_entropy"):
    pytest.skip("this torch has no linear_cross_entropy", allow_module_level=True)

torchs = F.linear_cross_entropy


def test_patched_and_back():
    with fused_losses.patched():
        assert F.linear_cross_entropy is fused_losses.functional.linear_cross_entropy
        module = nn.LinearCrossEntropyLoss(6, 5)
        fused_losses.routes(reset=True)
        loss = module(torch.ones(3, 6), torch.zeros(3, dtype=torch.int64))
        assert fused_losses.routes() == {"linear_cross_entropy": {"kernel": 1}}
    assert F.linear_cross_entropy is torchs
    torch.testing.assert_close(module(torch.ones(3, 6), torch.zeros(3, dtype=torch.int64)), loss)


def test_torchs_handlers_get_torchs_function():
    seen = []

    class Handler(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            seen.append(function)
            return torch.zeros(())

    with fused_losses.patched():
        F.linear_cross_entropy(torch.ones(3, 6).as_subclass(Handler), torch.ones(5, 6), torch.zeros(3).long())
    assert seen == [torchs]


def test_convert_and_revert():
    model = nn.ModuleDict({"head": nn.LinearCrossEntropyLoss(6, 5, bias=True)})
    input, target = torch.randn(4, 6), torch.randint(5, (4,))
    expected = model["head"](input, target)
    fused_losses.convert(model)
    assert type(model["head"]) is fused_losses.LinearCrossEntropyLoss
    torch.testing.assert_close(model["head"](input, target), expected)
    fused_losses.revert(model)
    assert type(model["head"]) is nn.LinearCrossEntropyLoss
