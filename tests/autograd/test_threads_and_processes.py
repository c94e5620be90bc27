"""Losses computed by several Python threads at once and by forked processes are the ones a single thread computes."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from losses import LOSSES, sample
from parity import run
from torch.utils.flop_counter import FlopCounterMode

import fused_losses

NUM_THREADS = 4
SECONDS_FOR_A_CHILD = 60  # it needs milliseconds; a deadlock after the fork is what is looked for


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_python_threads_at_once(loss, reduction):
    """Each has its own inputs, large enough for torch's pool to be used too; scratch memory must not be shared."""
    problems = [sample(loss, (300, 200)) for _ in range(NUM_THREADS)]
    expected = [run(loss.ours, *problem, reduction=reduction) for problem in problems]
    all_at_once = threading.Barrier(NUM_THREADS)

    def compute_repeatedly(problem):
        all_at_once.wait()
        return [run(loss.ours, *problem, reduction=reduction) for _ in range(10)]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        outcomes = list(pool.map(compute_repeatedly, problems))
    for repeated, once in zip(outcomes, expected, strict=True):
        for outcome in repeated:
            assert torch.equal(outcome.loss, once.loss)
            assert torch.equal(outcome.gradient, once.gradient)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_backward_in_another_thread_than_the_forward(loss):
    input, target = sample(loss, (6, 5))
    expected = run(loss.ours, input, target).gradient
    value = loss.ours(input.requires_grad_(), target)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(value.backward).result()
    assert torch.equal(input.grad, expected)


def compute_in_child(loss, input, target, connection):
    torch.set_num_threads(1)  # as every DataLoader worker does: OpenMP's pool does not survive a fork
    try:
        run(loss.torchs, input, target)
    except RuntimeError as error:  # builds with CUDA have threads for the backward, which do not survive it either
        connection.send(str(error))
        return
    outcome = run(loss.ours, input, target)
    connection.send((outcome.loss.item(), outcome.gradient.numpy().tobytes()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_forked_child(loss):
    """The parent has used torch's pool before; the child computes the same bits, and does not hang."""
    input, target = sample(loss, (300, 200))
    expected = run(loss.ours, input, target)
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    child = fork.Process(target=compute_in_child, args=(loss, input, target, sending))
    child.start()
    answer = receiving.recv() if receiving.poll(SECONDS_FOR_A_CHILD) else None
    if answer is None:
        child.kill()
    child.join()
    assert answer is not None, "the child hung"
    if isinstance(answer, str):
        pytest.skip(f"torch's own loss fails in a forked child: {answer}")
    value, gradient = answer
    assert value == expected.loss.item()
    assert gradient == expected.gradient.numpy().tobytes()


class LossOfRows(torch.utils.data.Dataset):
    def __init__(self, loss):
        self.loss, (self.input, self.target) = loss, sample(loss, (8, 5))

    def __len__(self):
        return len(self.input)

    def __getitem__(self, row):
        return self.loss.ours(self.input[row : row + 1], self.target[row : row + 1], reduction="sum")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_data_loader_worker(loss):
    rows = LossOfRows(loss)
    expected = torch.stack([rows[row] for row in range(len(rows))])
    (batch,) = torch.utils.data.DataLoader(rows, batch_size=8, num_workers=1, timeout=SECONDS_FOR_A_CHILD)
    assert torch.equal(batch, expected)


@pytest.mark.parametrize("mode", [nullcontext, FlopCounterMode])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_transforms_while_another_thread_compiles(loss, mode, monkeypatch):
    """Torch's flag of a compilation is one of the process; a mode of the user's traces nothing."""
    input, target = sample(loss)
    inputs, targets = torch.stack([input, input * 0.5]), torch.stack([target, target])
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    transforms = [
        lambda of: torch.func.jvp(lambda x: of(x, target), (input,), (torch.ones_like(input),))[1],
        lambda of: torch.func.grad(of)(input, target),
        lambda of: torch.func.vmap(torch.func.grad(of))(inputs, targets),
        lambda of: torch.func.hessian(of)(input, target),
    ]
    with FlopCounterMode(display=False) if mode is FlopCounterMode else mode():
        for transform in transforms:
            torch.testing.assert_close(transform(loss.ours), transform(loss.torchs))
        fused_losses.routes(reset=True)
        loss.ours(input.clone().requires_grad_(), target).backward()
    expected = "kernel" if mode is nullcontext else "kernel, as an operator"
    assert list(fused_losses.routes()[loss.name]) == [expected]
