"""explain() says which way a call would go, routes() which ways calls went, and both are true."""

import contextlib
import functools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from losses import CROSS_ENTROPY, LOSSES, NLL_LOSS, sample
from routes import FUSED, ROUTES
from torch.autograd.forward_ad import dual_level
from torch.utils.flop_counter import FlopCounterMode

import fused_losses


@pytest.fixture(autouse=True)
def no_routes():
    fused_losses.routes(reset=True)


def routes_of(loss):
    return fused_losses.routes().get(loss.name, {})


@pytest.mark.parametrize("form", ["function", "torch's function", "module", "torch's module"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_call_that_a_kernel_takes(loss, form):
    input, target = sample(loss, (6, 5))
    callable_of = {
        "function": loss.ours,
        "torch's function": getattr(F, loss.name),
        "module": loss.our_module(reduction="sum"),
        "torch's module": loss.torch_module(reduction="sum"),
    }[form]
    words = fused_losses.explain(callable_of, input.requires_grad_(), target)
    gradient = "the backward computes the gradient" if loss is NLL_LOSS else "with its gradient"
    assert words == f"kernel of {loss.name}: CPU, {fused_losses._C.cpu_capability()}, {gradient}"
    assert routes_of(loss) == {}  # nothing was called


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, t: (x.to("meta"), t.to("meta")), "there are no kernels for meta tensors"),
        (lambda x, t: (x, t.short()), "the targets are neither class indices nor probabilities of the input's shape"),
        (lambda x, t: (x, t[:3]), "the target's shape does not fit the input's"),
        (lambda x, t: (x.int(), t), "the logits are no floating-point tensor with a class axis"),
        (lambda x, t: (x[:0], t[:0]), "the input is empty"),
        (lambda x, t: (x.to_sparse(), t), "a tensor is not strided"),
        (lambda x, t: (x, x.softmax(1).requires_grad_()), "a target or weight requires a gradient"),
        (lambda x, t: (x, x.softmax(1).double()), "there is no kernel for these types of logits and probabilities"),
        (lambda x, t: (x.tolist(), t), "a tensor is a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_that_torch_takes(change, words):
    arguments = change(*sample(CROSS_ENTROPY, (6, 5)))
    assert fused_losses.explain(CROSS_ENTROPY.ours, *arguments) == f"torch's own cross_entropy: {words}"


def test_options_and_surroundings_are_part_of_the_call():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    explain = fused_losses.explain
    assert "no number in [0, 1]" in explain(CROSS_ENTROPY.ours, logits, target, label_smoothing=2.0)
    assert "the reduction is none of" in explain(CROSS_ENTROPY.ours, logits, target, reduction="median")
    assert "not one weight per class" in explain(torch.nn.CrossEntropyLoss(torch.ones(4)), logits, target)
    assert "the backward computes the gradient" in explain(
        CROSS_ENTROPY.ours, logits.clone().requires_grad_(), target, size_average=False, reduce=False
    )
    assert "over the logits" in explain(
        CROSS_ENTROPY.ours, logits.clone().requires_grad_(), target, inplace_gradient=True
    )
    with dual_level():
        assert "no forward-mode derivative" in explain(CROSS_ENTROPY.ours, logits, target)
    with torch.no_grad():
        assert "without a gradient" in explain(CROSS_ENTROPY.ours, logits.requires_grad_(), target)


def counted_calls(monkeypatch, names):
    """How often each operator was called, by name."""
    counts = dict.fromkeys(names, 0)
    for name in names:
        operator = getattr(fused_losses._ops, name)

        def counting(*arguments, name=name, operator=operator):
            counts[name] += 1
            return operator(*arguments)

        monkeypatch.setattr(fused_losses._ops, name, counting)
    return counts


@pytest.mark.parametrize("surroundings", ["plain", "hooks", "token weight", "mode"])
def test_what_is_said_of_the_gradient_is_what_happens(surroundings, monkeypatch):
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    logits.requires_grad_()
    options = {"token_weight": torch.rand(6)} if surroundings == "token weight" else {}
    around = {
        "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
        "mode": functools.partial(FlopCounterMode, display=False),
    }.get(surroundings, contextlib.nullcontext)
    counts = counted_calls(monkeypatch, ["cross_entropy_with_gradient"])
    with around():
        said = fused_losses.explain(CROSS_ENTROPY.ours, logits, target, **options)
        CROSS_ENTROPY.ours(logits, target, **options)
    assert said.endswith("with its gradient" if counts["cross_entropy_with_gradient"] else "computes the gradient")
    assert counts["cross_entropy_with_gradient"] == (surroundings == "plain")


def test_a_call_that_raises_raises_what_it_would():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    calls = [
        (ValueError, "focal_gamma", (logits, target), {"focal_gamma": 1.0, "label_smoothing": 0.1}),
        (ValueError, "focal_gamma", (logits, logits.softmax(1)), {"focal_gamma": 1.0}),
        (ValueError, "token_weight of shape", (logits, target), {"token_weight": torch.rand(5)}),
        (TypeError, "token_weight must be a tensor", (logits, target), {"token_weight": 1.0}),
    ]
    for kind, words, arguments, options in calls:
        for function in (CROSS_ENTROPY.ours, functools.partial(fused_losses.explain, CROSS_ENTROPY.ours)):
            with pytest.raises(kind, match=words):
                function(*arguments, **options)


def test_weighted_tokens_of_16_bits_take_weights_of_classes_in_float32():
    logits, target = sample(CROSS_ENTROPY, (6, 5), torch.bfloat16)
    options = {"weight": torch.rand(5), "token_weight": torch.rand(6)}
    assert fused_losses.explain(CROSS_ENTROPY.ours, logits, target, **options).startswith("kernel of cross_entropy")
    CROSS_ENTROPY.ours(logits, target, **options)
    assert routes_of(CROSS_ENTROPY) == {"kernel": 1}
    assert "the weight's type" in fused_losses.explain(CROSS_ENTROPY.ours, logits, target, weight=torch.rand(5))


def test_options_beyond_torch_and_what_is_wrong_with_the_call():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    with pytest.raises(ValueError, match="reduction"):
        fused_losses.explain(CROSS_ENTROPY.ours, logits, target, softcap=3.0, reduction="average")
    learned = torch.rand(6, requires_grad=True)
    assert not fused_losses.explain(CROSS_ENTROPY.ours, logits, target, token_weight=learned).endswith("a gradient")


def test_functions_that_torch_lacks():
    cpu = f"CPU, {fused_losses._C.cpu_capability()}"
    logits, target = torch.randn(6, 5, requires_grad=True), torch.randint(5, (6,))
    hidden, weight, _ = linear_layer()
    ours, explain = fused_losses.functional, fused_losses.explain
    statistics = f"kernel of token_statistics: {cpu}, the backward computes the gradient"
    assert explain(ours.token_statistics, logits, target) == statistics
    assert explain(ours.token_statistics, logits.detach(), target).endswith("without a gradient")
    assert explain(ours.token_statistics, logits.to("meta"), target.to("meta")).endswith("kernels for meta tensors")
    of_layer = f"kernel of linear_token_statistics: {cpu}, the backward computes the gradient"
    assert explain(ours.linear_token_statistics, hidden, weight, target) == of_layer
    focal = f"kernel of sigmoid_focal_loss: {cpu}, the backward computes the gradient"
    assert explain(ours.sigmoid_focal_loss, logits, torch.rand(6, 5)) == focal
    with pytest.raises(ValueError, match="Invalid alpha value"):
        explain(ours.sigmoid_focal_loss, logits, torch.rand(6, 5), alpha=2.0)


def linear_layer(requires_grad=True):
    hidden, weight = torch.randn(6, 3), torch.randn(5, 3, requires_grad=requires_grad)
    return hidden, weight, torch.randint(5, (6,))


LINEAR = fused_losses.functional.linear_cross_entropy


LINEAR_MODULES = {fused_losses.LinearCrossEntropyLoss, getattr(torch.nn, "LinearCrossEntropyLoss", None)} - {None}


@pytest.mark.parametrize("module", sorted(LINEAR_MODULES, key=lambda module: module.__module__))
def test_a_linear_layer_that_a_kernel_takes(module):
    hidden, weight, target = linear_layer()
    cpu = f"kernel of linear_cross_entropy: CPU, {fused_losses._C.cpu_capability()}"
    assert fused_losses.explain(LINEAR, hidden, weight, target) == f"{cpu}, with its gradient"
    words = fused_losses.explain(LINEAR, hidden, weight, target, reduction="none", softcap=5.0)
    assert words == f"{cpu}, the backward computes the gradient"
    assert fused_losses.explain(LINEAR, *linear_layer(False)) == f"{cpu}, without a gradient"
    head = module(3, 2, out_features=(2, 2), bias=True)
    assert fused_losses.explain(head, hidden, torch.randint(2, (6, 2, 2))) == f"{cpu}, with its gradient"
    weighted = module(3, 5, weight=torch.ones(5, dtype=torch.float64))
    assert "the weight's type is not the input's" in fused_losses.explain(weighted, hidden, target)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, w, t: (h, w, t, {"reduction": "median"}), "the reduction is none of"),
        (lambda h, w, t: (h, w.double(), t, {}), "input, weight and bias are of several types"),
        (lambda h, w, t: (h, w, t[:2], {}), "the target's shape does not fit"),
        (lambda h, w, t: (h, w, torch.rand(6, 5, requires_grad=True), {}), "a target or weight requires a gradient"),
        (lambda h, w, t: (h, w, t, {"logit_scale": 1e-45}), "no normal number"),
        (lambda h, w, t: (h.to("meta"), w.to("meta"), t.to("meta"), {}), "no kernels for meta tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_linear_layer_that_torch_takes(change, words):
    *arguments, options = change(*linear_layer())
    said = fused_losses.explain(LINEAR, *arguments, **options)
    assert said.startswith("torch's own linear_cross_entropy: ") and words in said


def test_what_is_said_of_a_linear_layer_is_what_happens():
    hidden, weight, target = linear_layer()
    said = []

    def loss(hidden):
        said.append(fused_losses.explain(LINEAR, hidden, weight, target))
        return LINEAR(hidden, weight, target)

    torch.func.grad(loss)(hidden)
    (route,) = fused_losses.routes()["linear_cross_entropy"]
    assert said == [f"torch's own linear_cross_entropy: {route.removeprefix('torch: ')}"]


def test_what_is_no_loss_is_a_type_error():
    for function in (F.mse_loss, torch.nn.MSELoss(), print):
        with pytest.raises(TypeError, match="is none of"):
            fused_losses.explain(function, torch.ones(1), torch.ones(1))
    with pytest.raises(TypeError):
        fused_losses.explain(CROSS_ENTROPY.ours, torch.ones(1, 2))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_calls_are_counted_by_route(loss):
    input, target = sample(loss, (6, 5))
    for _ in range(3):
        loss.ours(input, target)
    torch.func.vmap(loss.ours)(input[None], target[None])
    with dual_level():
        loss.ours(input, target)
    assert routes_of(loss) == {
        "kernel": 3,
        "kernel, as an operator": 1,
        "torch: the kernels have no forward-mode derivative": 1,
    }
    fused_losses.routes(reset=True)
    assert routes_of(loss) == {}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.call)
def test_every_row_of_the_routing_table_is_counted_as_it_is(route):
    route.run()
    taken = {name for by_route in fused_losses.routes().values() for name in by_route}
    if route.call == "a module compiled by torch.jit.script":
        assert taken == set()  # our function is not asked
    else:
        assert all(name.startswith("torch: ") != (route.route == FUSED) for name in taken) and taken


def test_the_environment_asks_for_a_line_for_each_new_route():
    program = (
        "import torch, fused_losses as f\n"
        "x, y = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)\n"
        "for _ in range(3): f.functional.cross_entropy(x, y)\n"
        "try: f.functional.nll_loss(x.int(), y)\n"
        "except RuntimeError: pass\n"
    )
    environment = {**os.environ, "FUSED_LOSSES_LOG": "routes"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines() == [
        "fused_losses: cross_entropy: kernel",
        "fused_losses: nll_loss: torch: the input is no floating-point tensor with a class axis",
    ]


class Overriding(torch.Tensor):
    pass


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_calls_that_go_to_a_subclass_are_counted(loss):
    input, target = sample(loss)
    fused_losses.routes(reset=True)
    loss.ours(input.as_subclass(Overriding), target)
    assert fused_losses.routes() == {loss.name: {"torch: a subclass or a mode overrides torch's functions": 1}}
