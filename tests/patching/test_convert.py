"""convert() and revert(): the loss modules in a tree become ours and torch's again, in place, with all they hold."""

import copy

import pytest
import torch
from losses import CROSS_ENTROPY, LOSSES, sample
from patched_state import fused_operators_used
from torch import nn

import fused_losses


def options_with_weight(loss):
    return {"weight": torch.linspace(0.5, 2, 5), "reduction": "sum"}


class NestedModel(nn.Module):
    """Losses as children, in lists and dicts, deep inside, and one that is registered twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(5), label_smoothing=0.1)
        self.listed = nn.ModuleList([nn.NLLLoss(), nn.Sequential(nn.ReLU(), nn.BCELoss())])
        self.by_name = nn.ModuleDict({"logits": nn.BCEWithLogitsLoss(pos_weight=torch.ones(5)), "l1": nn.L1Loss()})
        self.shared = self.criterion


def types_by_name(model):
    return {name: type(module) for name, module in model.named_modules(remove_duplicate=False)}


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_loss_module_itself(loss):
    module = loss.torch_module(**options_with_weight(loss))
    converted = fused_losses.convert(module)
    assert converted is module
    assert type(module) is loss.our_module
    assert fused_losses.revert(module) is module
    assert type(module) is loss.torch_module


def test_every_loss_of_a_nested_model():
    model = NestedModel()
    before = types_by_name(model)
    assert fused_losses.convert(model) is model
    ours_of = {loss.torch_module: loss.our_module for loss in LOSSES}
    assert types_by_name(model) == {name: ours_of.get(type_, type_) for name, type_ in before.items()}
    assert sum(type_ in ours_of.values() for type_ in types_by_name(model).values()) == 5
    assert model.shared is model.criterion
    assert fused_losses.revert(model) is model
    assert types_by_name(model) == before


def test_converting_twice_is_converting_once():
    model = fused_losses.convert(NestedModel())
    types = types_by_name(model)
    assert types_by_name(fused_losses.convert(model)) == types
    fused_losses.revert(model)
    assert types_by_name(fused_losses.revert(model)) == types_by_name(NestedModel())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_converted_module_runs_on_ours(loss, device):
    module = loss.torch_module(**options_with_weight(loss)).to(device)
    input, target = sample(loss, (8, 5), device=device)
    before = module(input, target)
    fused_losses.convert(module)
    with fused_operators_used() as operators:
        after = module(input, target)
    assert operators
    torch.testing.assert_close(after, before)
    fused_losses.revert(module)
    with fused_operators_used() as operators:
        assert torch.equal(module(input, target), before)
    assert not operators


def test_state_dict_parameters_and_names_stay():
    model = NestedModel()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    layer, weight = model.layer, model.criterion.weight
    fused_losses.convert(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in model.named_modules()] == names
    assert model.layer is layer
    assert model.criterion.weight is weight
    assert repr(model) == repr(NestedModel())


def test_isinstance_of_torchs_classes_still_holds():
    model = fused_losses.convert(NestedModel())
    assert isinstance(model.criterion, nn.CrossEntropyLoss)
    assert isinstance(model.by_name["logits"], nn.BCEWithLogitsLoss)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_options_mode_and_attributes_stay(loss):
    module = loss.torch_module(**options_with_weight(loss)).eval()
    module.note = "kept"
    attributes = dict(vars(module))
    fused_losses.convert(module)
    assert dict(vars(module)) == attributes
    assert not module.training


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_hooks_stay(loss):
    module, calls = loss.torch_module(), []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    fused_losses.convert(module)(*sample(loss, (8, 5)))
    assert calls == ["hook"]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_users_subclass_is_left_alone(loss):
    """It may override anything, so what it computes is its own affair."""

    class Doubled(loss.torch_module):
        def forward(self, input, target):
            return 2 * super().forward(input, target)

    model = nn.Sequential(Doubled())
    fused_losses.convert(model)
    assert type(model[0]) is Doubled
    fused_losses.revert(model)
    assert type(model[0]) is Doubled


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_users_subclass_of_ours_is_left_alone(loss):
    class Doubled(loss.our_module):
        pass

    model = nn.Sequential(Doubled())
    assert type(fused_losses.revert(model)[0]) is Doubled


@pytest.mark.parametrize(
    "option", [{"logit_scale": 0.5}, {"softcap": 5.0}, {"lse_square_scale": 1e-2}, {"focal_gamma": 2}]
)
def test_what_torch_cannot_compute_stays(option):
    model = nn.Sequential(fused_losses.CrossEntropyLoss(**option), fused_losses.CrossEntropyLoss(inplace_gradient=True))
    logits, target = torch.randn(6, 5), torch.randint(5, (6,))
    before = model[0](logits, target)
    fused_losses.revert(model)
    assert [type(loss) for loss in model] == [fused_losses.CrossEntropyLoss, nn.CrossEntropyLoss]
    assert torch.equal(model[0](logits, target), before)


def test_a_model_without_losses_is_returned_as_it_is():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    types = types_by_name(model)
    assert fused_losses.convert(model) is model
    assert types_by_name(model) == types


def test_a_copy_is_converted_alone():
    model = NestedModel()
    copied = fused_losses.convert(copy.deepcopy(model))
    assert type(copied.criterion) is CROSS_ENTROPY.our_module
    assert type(model.criterion) is CROSS_ENTROPY.torch_module


def test_training_mode_and_devices_after_the_conversion():
    model = fused_losses.convert(NestedModel()).double()
    assert model.criterion.weight.dtype == torch.float64
    assert model.eval().criterion.training is False
