"""Inductor's graphs hold cross-entropy where a negative log-likelihood follows its log_softmax, and only there."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager

from fused_losses.functional import nll_loss

JOINED = ["fused_losses.cross_entropy_prepared.default"]
TWO = ["fused_losses.nll_loss.default"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def operators_and_loss(program, *inputs):
    """What inductor makes of the program's graph before it differentiates, and the loss of that graph."""
    from torch._inductor.fx_passes.pre_grad import efficient_conv_bn_eval_pass

    operators = []

    def backend(graph, inputs):
        efficient_conv_bn_eval_pass.apply(graph.graph)
        graph.graph.lint()
        graph.recompile()
        targets = [str(node.target) for node in graph.graph.nodes]
        operators.extend(target for target in targets if target.startswith("fused_losses."))
        return aot_eager(graph, inputs)

    return operators, torch.compile(program, backend=backend, fullgraph=True)(*inputs)


def check(program, of_torch, logits, target, expected, tolerance=1e-5):
    """The operators of the graph; its loss and gradient against those of the program with torch's loss."""
    (ours, theirs) = leaves = [logits.clone().requires_grad_() for _ in range(2)]
    operators, loss = operators_and_loss(program, ours, target)
    assert operators == expected
    losses = [loss, torch.compile(of_torch, backend="aot_eager", fullgraph=True)(theirs, target)]
    for leaf, value in zip(leaves, losses, strict=True):
        value.sum().backward()
        assert value.dtype == losses[1].dtype and leaf.grad.dtype == leaf.dtype
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=tolerance, atol=tolerance)


def both(program):
    """The program with our loss and with torch's."""
    return (lambda *inputs: program(nll_loss, *inputs)), (lambda *inputs: program(F.nll_loss, *inputs))


LOG_SOFTMAX = {
    "function": lambda z: F.log_softmax(z, 1),
    "function, dim by name": lambda z: F.log_softmax(z, dim=1),
    "function, input by name": lambda z: F.log_softmax(input=z, dim=-z.dim() + 1),
    "method": lambda z: z.log_softmax(1),
    "torch": lambda z: torch.log_softmax(z, 1),
    "special": lambda z: torch.special.log_softmax(z, 1),
    "module": torch.nn.LogSoftmax(dim=1),
}


@pytest.mark.parametrize("form", LOG_SOFTMAX)
@pytest.mark.parametrize("sizes", [(6, 5), (2, 4, 3, 3)])
def test_every_form_is_joined(form, sizes):
    program = both(lambda loss, z, target: loss(LOG_SOFTMAX[form](z * 2), target))
    target = torch.randint(0, sizes[1], (sizes[0], *sizes[2:]))
    check(*program, torch.randn(sizes), target, JOINED)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_options(reduction, weighted):
    weight = torch.rand(5) if weighted else None
    options = {"weight": weight, "ignore_index": 1, "reduction": reduction}
    program = both(lambda loss, z, target: loss(F.log_softmax(z, 1), target, **options))
    check(*program, torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 4, 1, 0]), JOINED)


def test_one_row_without_a_batch():
    program = both(lambda loss, z, target: loss(F.log_softmax(z, 0), target))
    check(*program, torch.randn(5), torch.tensor(3), JOINED)


def test_without_a_gradient():
    logits, target = torch.randn(6, 5), torch.randint(0, 5, (6,))
    with torch.no_grad():
        operators, loss = operators_and_loss(lambda z, y: nll_loss(F.log_softmax(z, 1), y), logits, target)
    assert operators == ["fused_losses.cross_entropy_forward.default"]
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


def test_under_autocast_the_loss_is_float32():
    def program(loss, z, target):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(F.log_softmax(z @ torch.eye(5), 1), target)

    # 16-bit log-probabilities of torch's on a CPU, none of ours
    check(*both(program), torch.randn(6, 5), torch.randint(0, 5, (6,)), JOINED, tolerance=1e-2)


def test_bfloat16_stays_bfloat16():
    program = both(lambda loss, z, target: loss(F.log_softmax(z, 1), target))
    check(*program, torch.randn(6, 5, dtype=torch.bfloat16), torch.randint(0, 5, (6,)), JOINED, tolerance=1e-2)


def test_log_probabilities_that_others_read():
    def program(loss, z, target):
        log_p = F.log_softmax(z, 1)
        return loss(log_p, target) + (log_p.exp() * log_p).sum()

    check(*both(program), torch.randn(6, 5), torch.randint(0, 5, (6,)), JOINED)


def _another_axis(loss, z, target):
    return loss(F.log_softmax(z, 0), target)


def _another_type(loss, z, target):
    return loss(F.log_softmax(z, 1, dtype=torch.float64), target)


def _of_another_tensor(loss, z, target):
    return loss(F.log_softmax(z, 1) * 2, target)


def _written_by_a_method(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    z.add_(1000)
    return loss(log_p, target) + z.sum() * 0


def _written_by_an_item(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    z[:, 0] = 7
    return loss(log_p, target) + z.sum() * 0


def _written_by_an_operator(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    z *= 3
    return loss(log_p, target) + z.sum() * 0


def _written_by_a_function(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    torch.mul(z.detach(), 3, out=z.detach())
    return loss(log_p, target)


def _written_by_a_module(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    torch.nn.ReLU(inplace=True)(z)
    return loss(log_p, target) + z.sum() * 0


def _written_by_an_activation(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    F.relu(z, True)
    return loss(log_p, target)


def _written_by_a_named_argument(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    F.hardtanh(z, inplace=True)
    return loss(log_p, target)


def _written_by_a_special_method(loss, z, target):
    z = z * 1
    log_p = F.log_softmax(z, 1)
    z.__imul__(3)
    return loss(log_p, target)


def _logits_written_after_both(loss, z, target):
    z = z * 1
    losses = loss(F.log_softmax(z, 1), target, reduction="none")
    z.zero_()
    return losses.sum()


@pytest.mark.parametrize(
    "program",
    [
        _another_axis,
        _another_type,
        _of_another_tensor,
        _written_by_a_method,
        _written_by_an_item,
        _written_by_an_operator,
        _written_by_a_function,
        _written_by_a_module,
        _logits_written_after_both,
        _written_by_an_activation,
        _written_by_a_named_argument,
        _written_by_a_special_method,
    ],
)
def test_what_stays_two(program):
    check(*both(program), torch.randn(5, 5), torch.randint(0, 5, (5,)), TWO)


def test_hooked_log_probabilities():
    def program(loss, z, target):
        log_p = F.log_softmax(z, 1)
        value = loss(log_p, target)
        log_p.register_hook(lambda gradient: gradient * 2)
        return value

    tensors = torch.randn(5, 5, requires_grad=True), torch.randint(0, 5, (5,))
    ours, torchs = both(program)
    try:
        torch.compile(torchs, backend="aot_eager", fullgraph=True)(*tensors)
    except torch._dynamo.exc.Unsupported:
        pytest.skip("this torch's Dynamo follows no hook on an intermediate tensor")
    check(ours, torchs, tensors[0].detach(), tensors[1], TWO)


def test_written_log_probabilities():
    def program(z, target):
        log_p = F.log_softmax(z, 1)
        log_p[:, 0] = -1
        return nll_loss(log_p, target)

    operators, loss = operators_and_loss(program, torch.randn(5, 5), torch.zeros(5, dtype=torch.long))
    assert operators == TWO
    assert loss == 1


def test_constant_log_probabilities_stay_constant():
    def program(loss, z, target):
        with torch.no_grad():
            log_p = F.log_softmax(z, 1)
        return loss(log_p, target) + z.sum()

    check(*both(program), torch.randn(5, 5), torch.randint(0, 5, (5,)), TWO)


def test_what_is_computed_of_log_probabilities_on_the_way():
    def program(loss, z, target):
        log_p = F.log_softmax(z * 1, 1)
        hits = (log_p.argmax(1) == target).float().mean()
        return loss(log_p, target.long()) + hits * 0

    check(*both(program), torch.randn(6, 5), torch.randint(0, 5, (6,)), JOINED)


def test_no_gradient_is_prepared_that_nobody_wants():
    logits, target = torch.randn(6, 5), torch.randint(0, 5, (6,))
    operators, loss = operators_and_loss(lambda z, y: nll_loss(F.log_softmax(z, 1), y), logits, target)
    assert operators == ["fused_losses.cross_entropy.default"]
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


@pytest.mark.slow
def test_inductor_runs_one_operator():
    from torch._inductor.utils import run_and_get_code

    logits, target = torch.randn(64, 50, requires_grad=True), torch.randint(0, 50, (64,))
    with torch._inductor.config.patch(force_disable_caches=True):
        step = torch.compile(lambda z, y: nll_loss(F.log_softmax(z * 2, 1), y), fullgraph=True)
        loss, code = run_and_get_code(step, logits, target)
    assert "cross_entropy_prepared" in code[0] and "nll_loss" not in "".join(code)
    loss.backward()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits * 2, target), logits)
    torch.testing.assert_close(logits.grad, gradient)
