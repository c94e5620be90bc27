"""Compiled graphs hold the fused operators: in a model, under the patch, for batches of any size, in whole steps."""

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
import torch_abilities
from losses import CROSS_ENTROPY, LOSSES, NLL_LOSS, REDUCTIONS, sample, sample_class_probabilities
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import fused_losses
from fused_losses._C import num_prepared_gradients
from fused_losses.functional import linear_cross_entropy, linear_token_statistics

FEW_ROUNDINGS = 32 * torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


class Counting(CompileCounterWithBackend):
    """A backend that keeps the graphs it is given."""

    def __init__(self, backend="aot_eager"):
        super().__init__(backend)

    def fused_operators(self):
        targets = (str(node.target) for graph in self.graphs for node in graph.graph.nodes)
        return [target for target in targets if target.startswith("fused_losses.")]


def operator_of(loss, needs_gradient=True):
    if not needs_gradient:
        return f"fused_losses.{loss.name}_forward.default"
    return f"fused_losses.{loss.name}{'' if loss is NLL_LOSS else '_prepared'}.default"


class Model(torch.nn.Module):
    """A layer and its loss, which is given as a function or a module."""

    def __init__(self, loss, criterion):
        super().__init__()
        torch.manual_seed(7)
        self.layer, self.criterion = torch.nn.Linear(12, 5), criterion
        self.is_probability = loss.name == "binary_cross_entropy"

    def forward(self, features, target):
        output = self.layer(features)
        return self.criterion(output.sigmoid() if self.is_probability else output, target)


def problem(loss, num_rows=16):
    torch.manual_seed(num_rows)
    return torch.randn(num_rows, 12), sample(loss, (num_rows, 5))[1]


def gradients(function, *arguments, model=None):
    model = function if model is None else model
    model.zero_grad()
    value = function(*arguments)
    value.sum().backward()
    return [value.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


@pytest.mark.skipif(
    not torch_abilities.makes_tensors_over_memory(), reason="this torch makes no tensors over memory of ours"
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss is not NLL_LOSS], ids=repr)
def test_the_backward_takes_the_gradient_that_the_forward_made(loss, backend):
    """And finds none, to the same bits, where the scale of the loss is another or the graph is kept."""
    arguments = problem(loss)
    model = Model(loss, loss.our_module())
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    gc.collect()
    of_others = num_prepared_gradients()
    for scale in (1.0, 1.0, 0.5, 0.5):
        expected = gradients(lambda *a, scale=scale: model(*a) * scale, *arguments, model=model)
        value = compiled(*arguments) * scale
        assert num_prepared_gradients() == of_others + 1
        for _ in range(2):
            model.zero_grad()
            value.backward(retain_graph=True)
            assert num_prepared_gradients() == of_others
            assert_same([value.detach(), *(parameter.grad for parameter in model.parameters())], expected)


@pytest.mark.parametrize("form", ["function", "module", "patched function", "patched module"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_graph_of_a_model_holds_the_operator(loss, form):
    criterion = {
        "function": lambda: loss.ours,
        "module": lambda: loss.our_module(),
        "patched function": lambda: lambda x, t: getattr(F, loss.name)(x, t),
        "patched module": lambda: loss.torch_module(),
    }[form]()
    arguments = problem(loss)
    expected = gradients(Model(loss, loss.torchs), *arguments)
    backend = Counting()
    model = Model(loss, criterion)
    with fused_losses.patched() if "patched" in form else torch.enable_grad():
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        assert_same(gradients(compiled, *arguments), expected)
    assert backend.fused_operators() == [operator_of(loss)]


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_without_a_gradient_the_operator_alone(loss, reduction, records):
    """The one that has a derivative where a graph is recorded: Dynamo's flags may be out of date."""
    backend = Counting()
    compiled = torch.compile(lambda x, t: loss.ours(x, t, reduction=reduction), backend=backend, fullgraph=True)
    input, target = sample(loss, (6, 5))
    with torch.set_grad_enabled(records):
        assert_same(compiled(input, target), loss.torchs(input, target, reduction=reduction))
    expected = f"fused_losses.{loss.name}.default" if records else operator_of(loss, needs_gradient=False)
    assert backend.fused_operators() == [expected]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_batches_of_other_sizes_do_not_compile_again(loss):
    backend = Counting()
    model, torchs = Model(loss, loss.ours), Model(loss, loss.torchs)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for num_rows in (16, 8, 24, 7, 100, 33):
        arguments = problem(loss, num_rows)
        assert_same(gradients(compiled, *arguments), gradients(torchs, *arguments))
    assert backend.frame_count == 2  # the first size, then all others


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_dynamic_number_of_classes(loss):
    backend = Counting()
    compiled = torch.compile(loss.ours, backend=backend, fullgraph=True)
    for num_classes in (5, 9, 70):
        input, target = sample(loss, (6, num_classes))
        torch._dynamo.mark_dynamic(input, 1)
        if not loss.by_class:
            torch._dynamo.mark_dynamic(target, 1)
        assert_same(compiled(input, target), loss.torchs(input, target))
    assert backend.frame_count == 1


def training_losses(model, num_steps=20):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    values = []
    for step in range(num_steps):
        features, target = problem(model.loss, 16 + step % 3)
        optimizer.zero_grad()
        value = model(features, target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_training_to_the_same_curve(loss):
    ours, torchs = Model(loss, loss.our_module()), Model(loss, loss.torch_module())
    ours.loss = torchs.loss = loss
    ours.compile(backend="aot_eager", fullgraph=True)
    assert training_losses(ours) == pytest.approx(training_losses(torchs), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_activation_checkpointing_and_autocast_inside(loss):
    backend = Counting()
    model, torchs = Model(loss, loss.ours), Model(loss, loss.torchs)

    def step(module):
        def run(features, target):
            with torch.autocast("cpu", torch.bfloat16):
                return checkpoint(lambda x: module(x, target), features, use_reentrant=False)

        return run

    features, target = problem(loss)
    value = torch.compile(step(model), backend=backend, fullgraph=True)(features, target)
    value.backward()
    expected = step(torchs)(features, target)
    expected.backward()
    assert value.dtype == expected.dtype
    assert any(loss.name in name for name in _all_targets(backend))
    bound = 4 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(value, expected, rtol=bound, atol=bound)
    torch.testing.assert_close(model.layer.weight.grad, torchs.layer.weight.grad, rtol=bound, atol=bound)


def _all_targets(backend):
    modules = [module for graph in backend.graphs for module in graph.modules()]
    graphs = [module.graph for module in modules if isinstance(module, torch.fx.GraphModule)]
    return [str(node.target) for graph in graphs for node in graph.nodes]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_compiled_autograd_of_an_eager_forward(loss, reduction):
    backend = Counting()
    input, target = sample(loss, (6, 5))
    leaves = [input.clone().requires_grad_() for _ in range(2)]
    with compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True)):
        (2 * loss.ours(leaves[0] * 1, target, reduction=reduction)).sum().backward()
    (2 * loss.torchs(leaves[1] * 1, target, reduction=reduction)).sum().backward()
    assert_same(leaves[0].grad, leaves[1].grad)
    assert f"fused_losses.{loss.name}_backward.default" in backend.fused_operators()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_compiled_autograd_of_what_was_saved_through_hooks(loss):
    input, target = sample(loss, (6, 5))
    leaves = [input.clone().requires_grad_() for _ in range(2)]
    for leaf, context in zip(
        leaves,
        (nullcontext(), compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True))),
        strict=True,
    ):
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            value = loss.ours(leaf * 1, target)
        with context:
            value.backward()
    assert_same(leaves[1].grad, leaves[0].grad)


LINEAR = {
    **{
        f"{reduction}, token weights {weighs}": lambda x, w, y, t, reduction=reduction, weighs=weighs: (
            linear_cross_entropy(x, w, y, reduction=reduction, token_weight=t if weighs else None)
        )
        for reduction in REDUCTIONS
        for weighs in (False, True)
    },
    "probabilities": lambda x, w, y, t: linear_cross_entropy(x, w, F.one_hot(y.clamp(min=0), 5).float()),
    "statistics": lambda x, w, y, t: linear_token_statistics(x, w, y).entropy,
}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss", LINEAR.values(), ids=LINEAR)
def test_compiled_autograd_of_an_eager_linear_loss(loss, backend):
    leaves = [torch.randn(8, 4), torch.randn(5, 4), torch.rand(8)]
    target = torch.tensor([0, 4, -100, 2, 1, 1, -100, 3])
    gradients = []
    for context in (nullcontext(), compiled_autograd._enable(torch.compile(backend=backend))):
        x, w, t = (leaf.clone().requires_grad_() for leaf in leaves)
        value = 2 * loss(x, w, target, t)
        with context:
            value.sum().backward()
        gradients.append([leaf.grad for leaf in (x, w, t)])
    assert_same(*gradients)
    assert gradients[1][0] is not None and gradients[1][1] is not None


def test_a_default_device_keeps_the_operator():
    backend = Counting()
    torch.set_default_device("cpu")
    try:
        compiled = torch.compile(CROSS_ENTROPY.ours, backend=backend, fullgraph=True)
        compiled(*sample(CROSS_ENTROPY, (6, 5)))
    finally:
        torch.set_default_device(None)
    assert len(backend.fused_operators()) == 1


def test_what_has_no_kernel_is_torchs_in_the_graph():
    backend = Counting()
    target = sample_class_probabilities((6, 5)).requires_grad_()
    compiled = torch.compile(CROSS_ENTROPY.ours, backend=backend, fullgraph=True)
    logits, _ = sample(CROSS_ENTROPY, (6, 5))
    value = compiled(logits, target)
    assert_same(torch.autograd.grad(value, target), torch.autograd.grad(CROSS_ENTROPY.torchs(logits, target), target))
    assert backend.fused_operators() == []


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones(()))[0],
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x / 2])),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_transform_inside_is_torchs_composite_and_right(loss, transform):
    """Compiled transforms lose derivatives of operators (pytorch#192985, #193279): never a wrong number for that."""
    input, target = sample(loss, (4, 5))
    backend = Counting()
    compiled = torch.compile(
        lambda x: TRANSFORMS[transform](lambda y: loss.ours(y, target), x), backend=backend, fullgraph=True
    )
    expected = TRANSFORMS[transform](lambda y: loss.torchs(y, target), input)
    assert_same(compiled(input), expected)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_inductor_and_aot_eager_give_the_same_bits_of_the_loss(loss, reduction):
    input, target = sample(loss, (16, 33))
    results = []
    for backend in ("aot_eager", "inductor"):
        torch.compiler.reset()
        leaf = input.clone().requires_grad_()
        compiled = torch.compile(lambda x, t: loss.ours(x, t, reduction=reduction), backend=backend, fullgraph=True)
        value = compiled(leaf, target)
        value.backward(torch.full_like(value, 0.37))
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    eager = input.clone().requires_grad_()
    value = loss.ours(eager, target, reduction=reduction)
    value.backward(torch.full_like(value, 0.37))
    torch.testing.assert_close(results[0], (value.detach(), eager.grad), rtol=0, atol=0)


def test_the_options_of_cross_entropy():
    logits, target = sample(CROSS_ENTROPY, (8, 5))
    target[2] = 1
    weight = torch.linspace(0.5, 2, 5)
    for options in (
        dict(weight=weight, ignore_index=1, label_smoothing=0.1),
        dict(weight=weight, reduction="none"),
        dict(ignore_index=1, reduction="sum"),
    ):
        torch.compiler.reset()
        backend = Counting()
        compiled = torch.compile(lambda x, t, o=options: CROSS_ENTROPY.ours(x, t, **o), backend=backend, fullgraph=True)
        leaves = [logits.clone().requires_grad_() for _ in range(2)]
        values = [compiled(leaves[0], target), CROSS_ENTROPY.torchs(leaves[1], target, **options)]
        for value in values:
            value.sum().backward()
        assert_same([values[0], leaves[0].grad], [values[1], leaves[1].grad])
        assert backend.fused_operators() == [operator_of(CROSS_ENTROPY)]


def test_a_compiled_model_can_be_copied():
    model = Model(CROSS_ENTROPY, fused_losses.CrossEntropyLoss())
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    arguments = problem(CROSS_ENTROPY)
    assert_same(gradients(compiled, *arguments), gradients(model, *arguments))
