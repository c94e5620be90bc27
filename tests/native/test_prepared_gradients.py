"""Gradients that wait for the backward of a compiled graph: Note [Prepared gradients] in csrc/ops."""

import gc
import os
import signal
import threading

import pytest
import torch
from losses import BINARY_LOSSES, CROSS_ENTROPY, sample

from fused_losses import _ops
from fused_losses._C import num_prepared_gradients

LOSSES = [CROSS_ENTROPY, *BINARY_LOSSES]

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="torch.from_blob with a deleter came with 2.11"
)


class Prepared:
    """The prepared forward of a sample and its backward."""

    def __init__(self, loss, shape=(6, 5), reduction=1, dtype=torch.float32):
        self.loss, self.reduction = loss, reduction
        input, target = sample(loss, shape, dtype)
        self.operands = {
            "cross_entropy": (input, target, None),
            "binary_cross_entropy": (input, target, None),
            "binary_cross_entropy_with_logits": (input, target, None, None),
        }[loss.name]
        self.options = (reduction, -100, 0.0, False) if loss is CROSS_ENTROPY else (reduction,)

    def forward(self):
        value, self.ticket = getattr(_ops, f"{self.loss.name}_prepared")(*self.operands, *self.options)
        return value

    def backward(self, grad_output=1.0, ticket=None):
        name = "cross_entropy_backward" if self.loss is CROSS_ENTROPY else f"{self.loss.name}_prepared_backward"
        grad_output = torch.as_tensor(grad_output, dtype=self.operands[0].dtype)
        ticket = self.ticket if ticket is None else ticket
        return getattr(_ops, name)(grad_output, *self.operands, ticket, *self.options)

    def computed(self, grad_output=1.0):
        """The gradient that nothing was prepared for."""
        grad_output = torch.as_tensor(grad_output, dtype=self.operands[0].dtype)
        if self.loss is CROSS_ENTROPY:
            _, statistics = _ops.cross_entropy_with_statistics(*self.operands, *self.options)
            return _ops.cross_entropy_backward(grad_output, *self.operands, statistics, *self.options)
        return getattr(_ops, f"{self.loss.name}_backward")(grad_output, *self.operands, *self.options)


_of_others = 0  # gradients that wait for tests before this one


def num_waiting():
    return num_prepared_gradients() - _of_others


@pytest.fixture(autouse=True)
def nothing_waits_afterwards():
    global _of_others
    gc.freeze()  # garbage of others goes at no time in between
    _of_others = num_prepared_gradients()
    yield
    gc.unfreeze()
    assert num_waiting() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("shape", [(6, 5), (70, 200), (3, 4000), (2, 7, 40)], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_bits_do_not_depend_on_what_waits(loss, shape, reduction, dtype):
    call = Prepared(loss, shape, reduction, dtype)
    value = call.forward()
    assert torch.equal(value, getattr(_ops, f"{loss.name}_forward")(*call.operands, *call.options))
    assert num_waiting() == 1
    taken = call.backward()
    assert num_waiting() == 0
    again = call.backward()
    assert taken.data_ptr() != again.data_ptr()
    for gradient in (taken, again):
        assert torch.equal(gradient, call.computed())
        assert gradient.stride() == call.computed().stride()


def test_the_statistics_are_those_of_a_forward_that_prepares_nothing():
    call = Prepared(CROSS_ENTROPY, (70, 200))
    call.forward()
    assert torch.equal(call.ticket, _ops.cross_entropy_with_statistics(*call.operands, *call.options)[1])


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_another_grad_output_is_computed_and_expected_from_then_on(loss):
    shape = (6, 5 + LOSSES.index(loss))  # a kind of its own
    call = Prepared(loss, shape)
    for scale, is_prepared in [(0.5, 1), (0.5, 1), (0.25, 1), (3.0, 1), (3.0, 0), (3.0, 1), (1.0, 1)]:
        call.forward()
        assert num_waiting() == is_prepared, "two changes in a row, and nothing is prepared until none was"
        assert torch.equal(call.backward(scale), call.computed(scale))
        assert num_waiting() == 0


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_copy_of_the_ticket_and_other_operands_find_nothing(loss):
    call = Prepared(loss)
    call.forward()
    expected = call.computed()
    assert torch.equal(call.backward(ticket=call.ticket.clone()), expected)
    original = call.operands
    call.operands = (original[0].clone(), *original[1:])
    assert torch.equal(call.backward(), expected)
    assert num_waiting() == 1
    call.operands = original
    assert torch.equal(call.backward(), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_gradient_goes_with_the_ticket(loss):
    call = Prepared(loss)
    for _ in range(100):
        call.forward()
        assert num_waiting() == 1


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_unreduced_losses_have_nothing_to_prepare(loss):
    call = Prepared(loss, reduction=0)
    losses = call.forward()
    assert num_waiting() == 0
    grad_output = torch.rand_like(losses)
    assert torch.equal(call.backward(grad_output), call.computed(grad_output))


def test_threads_do_not_take_each_others():
    failures = []

    def work(seed):
        torch.manual_seed(seed)
        call = Prepared(LOSSES[seed % len(LOSSES)], (30, 40))
        for _ in range(50):
            call.forward()
            if not torch.equal(call.backward(), call.computed()):
                failures.append(seed)
            del call.ticket

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_forks_amid_busy_threads_never_hang():
    stop = threading.Event()

    def work():
        call = Prepared(CROSS_ENTROPY)
        while not stop.is_set():
            call.forward()
            del call.ticket

    # Torch initialises its statics in the first call that needs them, and a process forked meanwhile waits for ever.
    first = Prepared(CROSS_ENTROPY)
    first.forward()
    first.backward()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # what hangs ends
                torch.set_num_threads(1)
                call = Prepared(CROSS_ENTROPY)
                call.forward()
                call.backward()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
