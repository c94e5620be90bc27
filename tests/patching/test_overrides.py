"""Whoever overrides torch's losses meets torch's own functions, patched or not.

Handlers of ``__torch_function__`` look a function up in tables made when their module was imported, before any patch.
"""

import importlib
import pickle
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from losses import CLASS_LOSSES, LOSSES, sample
from torch.autograd.forward_ad import dual_level
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

import fused_losses
from fused_losses import patching
from fused_losses.torch_losses import NAMES

TORCHS = {name: getattr(F, name) for name in NAMES}
KNOWN = {function: name for name, function in TORCHS.items()}


def options_of(loss):
    if loss.by_class:
        return dict(weight=torch.rand(5), reduction="sum")
    return dict(weight=torch.rand(6, 5), reduction="sum")


class Recording(TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in KNOWN:
            self.seen.append((KNOWN[func], kwargs["reduction"]))
        return func(*args, **(kwargs or {}))


class Overriding(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in KNOWN:
            return f"{KNOWN[func]} overridden"
        return super().__torch_function__(func, types, args, kwargs or {})


class DuckType:
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return f"{KNOWN[func]} overridden"


@pytest.fixture(params=[False, True], ids=["as function", "patched"])
def call(request):
    """The loss as the package's function, or as torch's under the patch."""
    if not request.param:
        yield lambda loss: loss.ours
    else:
        with fused_losses.patched():
            yield lambda loss: getattr(F, loss.name)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_mode_sees_torchs_function(loss, call):
    input, target = sample(loss, (6, 5))
    options = options_of(loss)
    with Recording() as mode:
        value = call(loss)(input, target, **options)
    assert mode.seen == [(loss.name, "sum")]
    torch.testing.assert_close(value, loss.torchs(input, target, **options))


class RecordingEverything(TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = {name: (type(value), value) for name, value in (kwargs or {}).items()}
        self.seen.append((func, len(args), options))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_mode_sees_what_it_sees_of_torchs_function_and_nothing_else(loss, call):
    """Down to the types of the options: of an int torch.jit compiles no float."""
    input, target = sample(loss, (6, 5))
    with RecordingEverything() as of_torch:
        TORCHS[loss.name](input, target)
    with RecordingEverything() as of_ours:
        call(loss)(input, target)
    assert of_ours.seen == of_torch.seen


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_torch_jit_compiles_a_graph_of_fx(loss):
    class Model(torch.nn.Module):
        def forward(self, input, target):
            return getattr(F, loss.name)(input, target)

    input, target = sample(loss, (6, 5))
    with fused_losses.patched():
        graph = torch.fx.symbolic_trace(Model())
        scripted = torch.jit.script(graph)
    torch.testing.assert_close(scripted(input, target), TORCHS[loss.name](input, target))


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_a_mode_does_not_take_int32_classes_away(loss, call):
    input, target = sample(loss, (6, 5))
    with Recording() as mode:
        value = call(loss)(input, target.int(), reduction="sum")
    assert mode.seen == [(loss.name, "sum")]
    torch.testing.assert_close(value, loss.torchs(input, target, reduction="sum"))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("which", ["input", "target", "weight"])
def test_a_subclass_and_a_duck_type_override(loss, which, call):
    input, target = sample(loss, (6, 5))
    arguments = {"input": input, "target": target, "weight": options_of(loss)["weight"]}
    for stand_in in (arguments[which].as_subclass(Overriding), DuckType()):
        assert call(loss)(**{**arguments, which: stand_in}) == f"{loss.name} overridden"


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_subclass_without_a_handler_keeps_its_type(loss, call):
    class Plain(torch.Tensor):
        pass

    input, target = sample(loss, (6, 5))
    value = call(loss)(input.as_subclass(Plain), target)
    assert type(value) is Plain
    torch.testing.assert_close(value.as_subclass(torch.Tensor), loss.torchs(input, target))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_what_was_imported_by_name_before_says_its_own_name(loss, call):
    """Torch's function finds it under that name in torch.nn.functional, where ours stands."""
    input, target = sample(loss, (6, 5))
    assert TORCHS[loss.name](input.as_subclass(Overriding), target) == f"{loss.name} overridden"
    called = [n.target for n in torch.fx.symbolic_trace(TORCHS[loss.name]).graph.nodes if n.op == "call_function"]
    assert called == [TORCHS[loss.name]]


class Model(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, input, target):
        return getattr(F, self.name)(input, target, reduction="sum")


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_graph_of_fx_holds_torchs_function_and_can_be_pickled(loss):
    with fused_losses.patched():
        traced = torch.fx.symbolic_trace(Model(loss.name))
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called == [TORCHS[loss.name]]
    again = pickle.loads(pickle.dumps(traced))
    input, target = sample(loss, (6, 5))
    torch.testing.assert_close(again(input, target), loss.torchs(input, target, reduction="sum"))


def test_a_default_device_is_no_override(call):
    previous = torch.get_default_device()
    torch.set_default_device("cpu")
    try:
        with profile(activities=[ProfilerActivity.CPU]) as record:
            call(LOSSES[0])(*sample(LOSSES[0], (6, 5)))
    finally:
        torch.set_default_device(None if previous == torch.device("cpu") else previous)
    assert any(event.name.startswith("fused_losses::") for event in record.events())


@pytest.mark.parametrize("reloaded", ["torch_losses", "functional", "patching", "modules"])
def test_a_reload_while_patched_leaves_torch_to_be_restored(reloaded):
    module = sys.modules[f"fused_losses.{reloaded}"]
    names = dict(vars(module))
    fused_losses.patch()
    try:
        importlib.reload(module)
        assert patching.is_patched()
        input, target = sample(LOSSES[0], (6, 5))
        torch.testing.assert_close(F.cross_entropy(input, target), TORCHS["cross_entropy"](input, target))
        patching.unpatch()
        assert {name: getattr(F, name) for name in NAMES} == TORCHS
        with patching.patched():
            assert all(getattr(F, name) is not TORCHS[name] for name in NAMES)
        assert {name: getattr(F, name) for name in NAMES} == TORCHS
    finally:
        vars(module).update(names)
        fused_losses.unpatch()
    assert {name: getattr(F, name) for name in NAMES} == TORCHS


@pytest.mark.parametrize("context", [nullcontext, dual_level], ids=["on the kernels", "left to torch"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_deprecated_arguments_warn_once(loss, context, call):
    input, target = sample(loss, (6, 5))
    for legacy, reduction in ((dict(size_average=False), "sum"), (dict(reduce=False), "none")):
        with warnings.catch_warnings(record=True) as caught, context():
            warnings.simplefilter("always")
            value = call(loss)(input, target, **legacy)
        assert len(caught) == 1 and "deprecated" in str(caught[0].message)
        torch.testing.assert_close(value, loss.torchs(input, target, reduction=reduction))
