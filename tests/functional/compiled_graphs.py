"""A compiled graph beside eager mode."""

import torch


def check_compiled(loss, leaves, operator, dynamic=None):
    """A graph without a break, with this operator, and the loss and gradients of eager mode, to the bit."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=dynamic)
    assert torch.equal(compiled(*leaves), loss(*leaves))
    found, expected = (torch.autograd.grad(f(*leaves).sum() * 3, leaves) for f in (compiled, loss))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(compiled(*leaves), loss(*leaves))
    targets = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert f"fused_losses.{operator}.default" in targets
