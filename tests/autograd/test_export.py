"""Exported and traced graphs hold the fused operators, and give what the eager loss gives."""

import io

import pytest
import torch
import torch.nn.functional as F
from losses import LOSSES, REDUCTIONS, sample
from torch.fx.experimental.proxy_tensor import make_fx

from fused_losses import functional

FEW_ROUNDINGS = 32 * torch.finfo(torch.float32).eps


class Model(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.criterion = torch.nn.Linear(12, 5), loss.our_module()

    def forward(self, features, target):
        return self.criterion(self.layer(features).sigmoid(), target)


def problem(loss, num_rows=6):
    return torch.randn(num_rows, 12), sample(loss, (num_rows, 5))[1]


def fused_operators(graph):
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("fused_losses.")]


def gradients(model, *arguments):
    model.zero_grad()
    value = model(*arguments)
    value.backward()
    return [value.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def assert_same(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


class OfMaskedRows(torch.nn.Module):
    """How many there are depends on data."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, logits, labels):
        rows = (labels != -100).nonzero().squeeze(1)
        return self.loss(logits[rows], labels[rows])


OF_ROWS = {
    "cross_entropy": functional.cross_entropy,
    "nll_loss": functional.nll_loss,
    "with_logits": lambda x, y: functional.binary_cross_entropy_with_logits(x, F.one_hot(y, 5).float()),
    "linear": lambda x, y: functional.linear_cross_entropy(x, torch.eye(5), y),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["export", "strict export", "compile"])
@pytest.mark.parametrize("loss", OF_ROWS.values(), ids=OF_ROWS)
def test_a_number_of_rows_that_depends_on_data(loss, how):
    """Nobody knows whether there is one, which torch's own losses bear."""
    model, logits = OfMaskedRows(loss), torch.randn(8, 5)
    labels = torch.tensor([1, -100, 4, 0, -100, 2, 2, 3])
    if how == "compile":
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            graph = torch.compile(model, backend="aot_eager", fullgraph=True)
            assert_same(graph(logits, labels), model(logits, labels))
            return
    graph = torch.export.export(model, (logits, labels), strict=how == "strict export").module()
    for given in (labels, torch.full_like(labels, -100)):
        torch.testing.assert_close(graph(logits, given), model(logits, given), equal_nan=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_an_exported_training_graph(loss, strict):
    model, arguments = Model(loss), problem(loss)
    expected = gradients(model, *arguments)
    exported = torch.export.export(model, arguments, strict=strict)
    assert len(fused_operators(exported.graph)) == 1
    assert_same(gradients(exported.module(), *arguments), expected)
    decomposed = exported.run_decompositions()
    assert len(fused_operators(decomposed.graph)) == 1
    assert_same(decomposed.module()(*arguments).detach(), expected[0])
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert fused_operators(loaded.graph) == fused_operators(exported.graph)
    assert_same(gradients(loaded.module(), *arguments), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_an_exported_graph_with_a_dynamic_batch(loss):
    model, batch = Model(loss), torch.export.Dim("batch")
    shapes = ({0: batch}, {0: batch})
    exported = torch.export.export(model, problem(loss), dynamic_shapes=shapes)
    assert len(fused_operators(exported.graph)) == 1
    arguments = problem(loss, 13)
    assert_same(gradients(exported.module(), *arguments), gradients(model, *arguments))


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_make_fx_of_a_step(loss, reduction, tracing_mode):
    """grad_output is an argument: no number of it may be a constant of the graph."""

    def step(input, target, grad_output):
        leaf = input.detach().requires_grad_()
        value = loss.ours(leaf, target, reduction=reduction)
        return value, torch.autograd.grad(value, leaf, grad_output.expand_as(value))[0]

    input, target = sample(loss, (6, 5))
    graph = make_fx(step, tracing_mode=tracing_mode)(input, target, torch.tensor(1.0))
    assert any(name.endswith("_backward.default") for name in fused_operators(graph.graph))
    for grad_output in (torch.tensor(1.0), torch.tensor(0.37)):
        input, target = sample(loss, (6, 5))
        assert_same(list(graph(input, target, grad_output)), [*map(torch.detach, step(input, target, grad_output))])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_onnx_gets_torchs_own_operators(loss, strict, monkeypatch):
    """Its exporter exports first, and would find no translation of ours. Installed or not, this is what it asks."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    exported = torch.export.export(Model(loss), problem(loss), strict=strict)
    assert fused_operators(exported.graph) == []


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_ahead_of_time_inductor(loss, tmp_path):
    """A model with its loss as a shared library, in which the operator is called through the stable ABI."""
    model, arguments = Model(loss), problem(loss)
    with torch.no_grad():
        exported = torch.export.export(model, arguments)
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        assert_same(compiled(*arguments), model(*arguments))


def loss_of_layer(features, weight, target, reduction):
    return functional.linear_cross_entropy(features, weight, target, reduction=reduction)


class LaterTrained(torch.nn.Module):
    """Frozen when it is exported."""

    def __init__(self, loss, reduction):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 12), requires_grad=False)
        self.loss, self.reduction = loss, reduction

    def forward(self, features, target):
        if self.loss is None:
            return loss_of_layer(features, self.weight, target, self.reduction)
        values = (features @ self.weight.T).sigmoid()
        return self.loss.ours(values, target, reduction=self.reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", ["export", "strict export", "make_fx"])
@pytest.mark.parametrize("loss", [*LOSSES, None], ids=lambda loss: loss.name if loss else "linear_cross_entropy")
def test_a_graph_that_was_made_without_a_gradient_has_one_later(loss, how, reduction):
    """Torch's own losses have, and nobody asks an exported graph again."""
    model, target = LaterTrained(loss, reduction), problem(loss or LOSSES[0])[1]
    features = torch.randn(6, 12)
    if how == "make_fx":
        graph = make_fx(lambda features, target: model(features, target))(features, target)
    else:
        with torch.no_grad():
            graph = torch.export.export(model, (features, target), strict=how == "strict export").module()
    if loss is not None:
        assert [name for name in fused_operators(graph.graph) if name == f"fused_losses.{loss.name}.default"]
    found, expected = (
        torch.autograd.grad(of(x, target).sum(), x)[0]
        for of, x in ((graph, features.clone().requires_grad_()), (model, features.clone().requires_grad_()))
    )
    assert_same(found, expected)


def test_a_gradient_of_a_layer_that_an_exported_graph_lacks_is_computed_then():
    model, (features, target) = LaterTrained(None, "mean"), problem(LOSSES[0])
    graph = torch.export.export(model, (features.requires_grad_(), target)).module()
    torch.testing.assert_close(graph(features, target), model(features, target))
    for trained in (graph, model):
        next(trained.parameters()).requires_grad_()
    losses = graph(features, target), model(features, target)
    gradients = (
        torch.autograd.grad(3 * value, [features, next(of.parameters())])
        for value, of in zip(losses, (graph, model), strict=True)
    )
    torch.testing.assert_close(*gradients)
