"""patch() in a program that has not imported Dynamo yet, as most have not: in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
import torch.nn.functional as F
import fused_losses

assert "torch._dynamo" not in sys.modules, "there is nothing to test"
torchs = dict(vars(F))
fused_losses.patch()
logits, target = torch.randn(6, 5, requires_grad=True), torch.randint(5, (6,))
probabilities = torch.rand(6, 5)
losses = {
    "cross_entropy": lambda x: F.cross_entropy(x, target),
    "nll_loss": lambda x: F.nll_loss(x.log_softmax(1), target),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), probabilities),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, probabilities),
}
"""

GRAPHS = """
def targets_of_graph(loss, input):
    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    torch.testing.assert_close(torch.compile(loss, backend=backend, fullgraph=True)(input), loss(input))
    (graph,) = graphs
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]

for name, loss in losses.items():
    targets = targets_of_graph(loss, logits)
    assert any(str(target).startswith(f"fused_losses.{name}") for target in targets), targets
    assert getattr(F, name) not in targets
    torchs_own = torchs[name]
    aim = target if name in ("cross_entropy", "nll_loss") else probabilities
    assert torchs_own in targets_of_graph(lambda x: torchs_own(x, aim), logits.sigmoid())
"""

TRANSFORMS = """
for transform in (
    torch.func.grad,
    torch.func.jacfwd,
    lambda f: lambda x: torch.func.jvp(f, (x,), (x * 2,)),
    lambda f: lambda x: torch.vmap(torch.func.grad(f))(torch.stack([x, x * 2])),
):
    for name, loss in losses.items():
        fused_losses.unpatch()
        wanted = transform(loss)(logits.detach())
        fused_losses.patch()
        for backend in ("eager", "aot_eager"):
            compiled = torch.compile(transform(loss), backend=backend)
            torch.testing.assert_close(compiled(logits.detach()), wanted)
            torch.compiler.reset()
"""

NAMES = """
from torch.overrides import get_overridable_functions, resolve_name

for name in losses:
    assert resolve_name(torchs[name]) == f"torch.nn.functional.{name}"
    assert torchs[name] in get_overridable_functions()[F]
"""


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(GRAPHS, id="graphs"),
        pytest.param(TRANSFORMS, id="transforms", marks=pytest.mark.slow),
        pytest.param(NAMES, id="names"),
    ],
)
def test_torch_knows_its_own_functions_and_traces_ours(part, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + part)
    subprocess.run([sys.executable, "-W", "ignore", program], check=True)
