"""patch(), unpatch(), patched() and is_patched(): which functions stand in torch.nn.functional when."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from losses import LOSSES, sample
from patched_state import fused_operators_used, torch_has_its_own_functions, torch_has_our_functions

import fused_losses
from fused_losses.torch_losses import PATCHED_NAMES


def test_patch_and_unpatch():
    assert not fused_losses.is_patched()
    fused_losses.patch()
    assert fused_losses.is_patched()
    assert torch_has_our_functions(LOSSES)
    fused_losses.unpatch()
    assert not fused_losses.is_patched()
    assert torch_has_its_own_functions(LOSSES)


def test_patching_twice_is_patching_once():
    fused_losses.patch()
    fused_losses.patch()
    assert torch_has_our_functions(LOSSES)
    fused_losses.unpatch()
    assert torch_has_its_own_functions(LOSSES)


def test_unpatching_what_is_not_patched_changes_nothing():
    fused_losses.unpatch()
    fused_losses.unpatch()
    assert torch_has_its_own_functions(LOSSES)
    assert not fused_losses.is_patched()


def test_nothing_else_in_torch_nn_functional_changes():
    before = dict(vars(torch.nn.functional))
    fused_losses.patch()
    changed = {name for name, value in vars(torch.nn.functional).items() if before.get(name) is not value}
    assert changed == {*PATCHED_NAMES, "handle_torch_function"} >= {loss.name for loss in LOSSES}
    fused_losses.unpatch()
    assert dict(vars(torch.nn.functional)) == before


def test_patched_restores_at_the_end_of_the_block():
    with fused_losses.patched():
        assert torch_has_our_functions(LOSSES)
        assert fused_losses.is_patched()
    assert torch_has_its_own_functions(LOSSES)


def test_nested_blocks_end_with_the_outer_one():
    with fused_losses.patched():
        with fused_losses.patched():
            assert torch_has_our_functions(LOSSES)
        assert torch_has_our_functions(LOSSES)
    assert torch_has_its_own_functions(LOSSES)


def test_a_block_inside_patch_leaves_it_patched():
    fused_losses.patch()
    with fused_losses.patched():
        assert torch_has_our_functions(LOSSES)
    assert torch_has_our_functions(LOSSES)


def test_patch_inside_a_block_outlives_it():
    with fused_losses.patched():
        fused_losses.patch()
    assert torch_has_our_functions(LOSSES)


def test_an_exception_in_a_block_restores():
    with pytest.raises(ZeroDivisionError), fused_losses.patched(), fused_losses.patched():
        assert torch_has_our_functions(LOSSES)
        raise ZeroDivisionError
    assert torch_has_its_own_functions(LOSSES)


def test_a_block_can_be_entered_again_and_again():
    for _ in range(3):
        with fused_losses.patched():
            assert torch_has_our_functions(LOSSES)
        assert torch_has_its_own_functions(LOSSES)


def test_patched_decorates_a_function():
    @fused_losses.patched()
    def is_ours():
        return torch_has_our_functions(LOSSES)

    assert is_ours()
    assert is_ours()
    assert torch_has_its_own_functions(LOSSES)


def test_blocks_that_overlap_in_two_threads():
    """The second thread's block goes on after the first one's has ended: the functions must stay ours until then."""
    second_is_inside, first_has_left = threading.Event(), threading.Event()
    seen_in_second = []

    def second_thread():
        with fused_losses.patched():
            second_is_inside.set()
            first_has_left.wait(timeout=30)
            seen_in_second.append(torch_has_our_functions(LOSSES))

    thread = threading.Thread(target=second_thread)
    with fused_losses.patched():
        thread.start()
        assert second_is_inside.wait(timeout=30)
    first_has_left.set()
    thread.join()
    assert seen_in_second == [True]
    assert torch_has_its_own_functions(LOSSES)


def test_many_threads_patching_at_once():
    together = threading.Barrier(8)

    def enter_and_leave(_):
        together.wait(timeout=30)
        seen = []
        for _ in range(200):
            with fused_losses.patched():
                seen.append(torch_has_our_functions(LOSSES))
        return seen

    with ThreadPoolExecutor(8) as pool:
        seen_by_thread = list(pool.map(enter_and_leave, range(8)))
    assert all(all(seen) for seen in seen_by_thread)
    assert torch_has_its_own_functions(LOSSES)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_calls_of_torchs_names_run_on_ours(loss, device):
    input, target = sample(loss, (8, 5), device=device)
    with fused_losses.patched():
        calls = {
            "function": lambda x: getattr(torch.nn.functional, loss.name)(x, target),
            "module": loss.torch_module(),
        }
        for call in calls.values():
            leaf = input.clone().requires_grad_()
            with fused_operators_used() as operators:
                value = call(leaf) if call is calls["function"] else call(leaf, target)
                value.backward()
            assert operators, "torch's own function ran"
            expected = loss.ours(input, target)
            torch.testing.assert_close(value.detach(), expected)
    with fused_operators_used() as operators:
        getattr(torch.nn.functional, loss.name)(input, target)
        loss.torch_module()(input, target)
    assert not operators, "ours ran after the block"


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_user_code_that_calls_torch_runs_on_ours(loss):
    """A model written before it knew of fused_losses, with a module made before the patch."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.criterion = torch.nn.Linear(6, 5), loss.torch_module()

        def forward(self, features, target):
            return self.criterion(self.layer(features).sigmoid(), target)

    model, features, target = Model(), torch.randn(8, 6), sample(loss, (8, 5))[1]
    before = model(features, target)
    with fused_losses.patched(), fused_operators_used() as operators:
        during = model(features, target)
    assert operators
    torch.testing.assert_close(during, before)
    assert type(model.criterion) is loss.torch_module


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_errors_under_the_patch_are_torchs(loss):
    """Ours calls torch's original for what it has no kernel for; were it the patched name, this would never end."""
    bad = (torch.randn(4, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError) as torchs:
        loss.torchs(*bad)
    with fused_losses.patched(), pytest.raises(ValueError) as ours:
        getattr(torch.nn.functional, loss.name)(*bad)
    assert str(ours.value) == str(torchs.value)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_what_has_no_kernel_runs_on_torch_under_the_patch(loss):
    input, target = sample(loss, (6, 5), dtype=torch.float64)
    expected = torch.func.grad(lambda x: loss.torchs(x, target))(input)
    with fused_losses.patched():
        patched = torch.func.grad(lambda x: getattr(torch.nn.functional, loss.name)(x, target))(input)
    torch.testing.assert_close(patched, expected)


def test_our_modules_work_inside_and_outside(device):
    for loss in LOSSES:
        input, target = sample(loss, (8, 5), device=device)
        outside = loss.our_module()(input, target)
        with fused_losses.patched():
            assert torch.equal(loss.our_module()(input, target), outside)


def test_a_function_that_somebody_else_put_there_is_not_lost(monkeypatch):
    """Another library's replacement of one of the names survives a patched block of ours."""

    def theirs(input, target, **options):
        return input.sum() * 0

    monkeypatch.setattr(torch.nn.functional, "nll_loss", theirs)
    with fused_losses.patched():
        pass
    assert torch.nn.functional.nll_loss is theirs


SCRIPTS = """
import torch
import torch.nn.functional as F
import fused_losses

fused_losses.patch()
for loss in ("CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss"):
    torch.jit.script(getattr(torch.nn, loss)())
    torch.jit.script(getattr(fused_losses, loss)())

def smoothed(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, target, label_smoothing=0.1)

logits, target = torch.randn(8, 5), torch.randint(5, (8,))
torch.testing.assert_close(torch.jit.script(smoothed)(logits, target), smoothed(logits, target))
"""


def test_torch_script_compiles_torchs_functions_while_ours_are_in_their_place(tmp_path):
    """In a process of its own: what torch.jit has compiled before, it does not compile again."""
    script = tmp_path / "scripts.py"  # torch.jit reads the source
    script.write_text(SCRIPTS)
    subprocess.run([sys.executable, "-W", "ignore", script], check=True)
