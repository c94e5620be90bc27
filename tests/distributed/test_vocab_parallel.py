"""Classes and rows that are spread over two, three and four processes, which speak through gloo: several_ranks.py."""

import importlib
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from ranks import assert_passed, needs_gloo, outcomes
from several_ranks import CASES, run
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from fused_losses import distributed

MODULES = ["vocab_parallel_cases", "dtensor_rows_cases"]
for module in MODULES:
    importlib.import_module(module)

pytestmark = needs_gloo


@pytest.fixture(scope="session")
def outcomes_of(tmp_path_factory):
    return lambda num_ranks: outcomes(tmp_path_factory, "vocab_parallel", num_ranks, run, MODULES)


# A quick run has two processes: `make test` is to take minutes, on two cores.
SLOW_CASES = [pytest.param(*case, marks=pytest.mark.slow) if case[1] > 2 else case for case in CASES]


@pytest.mark.parametrize(("name", "num_ranks"), SLOW_CASES)
def test_a_spread_vocabulary(name, num_ranks, outcomes_of):
    assert_passed(name, outcomes_of(num_ranks))


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD.group_name
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_operators_are_described_to_torch(reduction, one_process):
    """Shapes, types and strides of the fakes, schemas, derivatives: of the operators and, by these, their backwards."""
    logits, target = torch.randn(3, 5, requires_grad=True), torch.tensor([0, -100, 4])
    hidden, linear_weight, bias, u = (torch.randn(size, requires_grad=True) for size in ((3, 2), (5, 2), (5,), (3,)))
    options = (one_process, None, -100, 0.1, reduction, 0.7, 5.0, 0.1)
    calls = {
        "cross_entropy": (logits, target, torch.rand(5), u, *options),
        "linear_cross_entropy": (hidden, linear_weight, bias, target, None, u, True, *options),
        "token_statistics": (logits, target, one_process, 0, -100, 0.7, None),
    }
    for name, arguments in calls.items():
        operator = getattr(torch.ops.fused_losses, f"vocab_parallel_{name}").default
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("option", ["logit_scale", "softcap"])
def test_a_scale_that_is_to_be_learned_is_refused(option, one_process):
    """Before anything is sent: its gradient would be lost without a word."""
    logits, target = torch.randn(3, 5), torch.tensor([0, 2, 4])
    calls = {
        distributed.vocab_parallel_cross_entropy: (logits, target),
        distributed.vocab_parallel_token_statistics: (logits, target),
        distributed.vocab_parallel_linear_cross_entropy: (torch.randn(3, 2), torch.randn(5, 2), target),
    }
    for function, arguments in calls.items():
        with pytest.raises(TypeError, match="learned"):
            function(*arguments, **{option: torch.nn.Parameter(torch.tensor(2.0))})


@pytest.mark.slow
def test_the_example_trains_the_same_curve_as_one_process():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "examples.vocab_parallel", "--steps", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "furthest apart" in run.stdout


@pytest.mark.parametrize(
    ("module", "option"),
    [
        (distributed.VocabParallelCrossEntropyLoss, "label_smothing"),
        (distributed.VocabParallelLinearCrossEntropyLoss, "token_weight"),  # of the call
        (distributed.VocabParallelTokenStatistics, "reduction"),
    ],
)
def test_modules_refuse_options_that_their_functions_lack(module, option):
    with pytest.raises(TypeError, match=f"{module.__name__} has no option {option}, but .*softcap"):
        module(**{option: 0.1})


def spread_losses():
    """Each function on a rank that holds all classes."""
    weight = torch.randn(5, 5)
    return {
        "logits": lambda x, t, **o: distributed.vocab_parallel_cross_entropy(x, t, **o),
        "linear": lambda x, t, **o: distributed.vocab_parallel_linear_cross_entropy(x, weight.to(x.device), t, **o),
        "statistics": lambda x, t, **o: distributed.vocab_parallel_token_statistics(x, t, **o).log_prob,
    }


@pytest.mark.parametrize("name", ["logits", "linear", "statistics"])
def test_what_is_modified_after_a_loss_under_hooks_is_an_error(name, one_process):
    """Note [Versions under hooks]: torch compares none there."""
    loss, target = spread_losses()[name], torch.tensor([0, 2, 4])

    def region(leaf, modifies):
        values = leaf * 1
        result = loss(values, target).sum()
        if modifies:
            values.add_(torch.arange(5.0))
        return result.sin()  # a checkpoint computes again as far as something is saved

    leaf = torch.randn(3, 5, requires_grad=True)
    expected = torch.autograd.grad(region(leaf, modifies=False), leaf)
    for modifies in (False, True):
        values = [checkpoint(region, leaf, modifies, use_reentrant=False)]
        with save_on_cpu():
            values.append(region(leaf, modifies))
        for value in values:
            with pytest.raises(RuntimeError, match="modified by an inplace") if modifies else nullcontext():
                torch.testing.assert_close(torch.autograd.grad(value, leaf), expected)


AUTOCAST_AS_ON_A_GPU = """
import torch, torch.distributed as dist
from fused_losses.distributed import vocab_parallel_cross_entropy

def mv(matrix, vector):  # which on a CPU has no rule of autocast, and on a GPU that of matrix products
    with torch.autocast("cpu", enabled=False):
        return torch.mv(matrix.half(), vector.half())

library = torch.library.Library("aten", "IMPL")
library.impl("mv", mv, "AutocastCPU")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
logits, target, weight = torch.randn(8, 32000), torch.arange(8), torch.rand(32000) + 0.5
with torch.autocast("cpu", torch.float16):
    loss = vocab_parallel_cross_entropy(logits, target, weight=weight, label_smoothing=0.1)
expected = torch.nn.functional.cross_entropy(logits, target, weight, label_smoothing=0.1)
torch.testing.assert_close(loss, expected)
dist.destroy_process_group()
"""


def test_nothing_is_rounded_under_autocast():
    """In a process of its own: a rule once given stays."""
    run = subprocess.run([sys.executable, "-c", AUTOCAST_AS_ON_A_GPU], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["logits", "linear", "statistics"])
def test_forward_mode_is_refused(name, one_process):
    """Torch would take the operator for a constant inside jvp."""
    loss, logits, target = spread_losses()[name], torch.randn(3, 5), torch.tensor([0, 2, 4])
    for transform in (
        lambda f: torch.func.jvp(f, (logits,), (logits,)),
        lambda f: torch.func.jacfwd(f)(logits),
        lambda f: torch.compile(lambda x: torch.func.jvp(f, (x,), (x,)), backend="eager")(logits),
    ):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            transform(lambda x: loss(x, target))


@pytest.mark.parametrize("name", ["logits", "linear", "statistics"])
def test_what_is_wrong_with_devices_and_shards(name, one_process):
    loss, logits, target = spread_losses()[name], torch.randn(3, 5), torch.tensor([0, 2, 4])
    for x, t in ((logits.to("meta"), target), (logits, target.to("meta"))):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            loss(x, t)
    assert loss(logits.to("meta"), target.to("meta")).is_meta
    with pytest.raises(ValueError, match="vocab_start must not be negative"):
        loss(logits, target, vocab_start=-1)
