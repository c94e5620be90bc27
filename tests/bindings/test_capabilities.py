"""fused_losses._C: which CPU instruction sets there are, which one is in use, and how to force one."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from losses import CROSS_ENTROPY, sample

import fused_losses
from fused_losses import _C

FROM_LEAST_TO_BEST = ["baseline", "avx2", "avx512"]


@pytest.fixture(autouse=True)
def restore_capability():
    capability = _C.cpu_capability()
    yield
    _C.set_cpu_capability(capability)


def capability_of_a_new_process(**environment):
    """The capability that a fresh interpreter chooses, given these environment variables; or its error."""
    inherited = {name: value for name, value in os.environ.items() if name != "FUSED_LOSSES_CPU_CAPABILITY"}
    inherited["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", "import fused_losses; print(fused_losses._C.cpu_capability())"],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_available_capabilities_come_in_order_and_begin_with_the_baseline():
    available = _C.available_cpu_capabilities()
    assert available[0] == "baseline"
    assert available == [name for name in FROM_LEAST_TO_BEST if name in available]


def test_available_capabilities_are_those_torch_finds():
    """Torch names the best set the processor has, unless ATEN_CPU_CAPABILITY says otherwise."""
    if "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip("ATEN_CPU_CAPABILITY is set, so torch does not say what the processor has")
    of_torch = {"DEFAULT": "baseline", "AVX2": "avx2", "AVX512": "avx512"}
    best = of_torch.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    assert _C.available_cpu_capabilities()[-1] == best


def test_every_available_capability_can_be_set():
    for name in _C.available_cpu_capabilities():
        _C.set_cpu_capability(name)
        assert _C.cpu_capability() == name


@pytest.mark.parametrize("name", ["sse9", "", "AVX2", "avx2 "])
def test_an_unknown_capability_is_refused_and_named(name):
    before = _C.cpu_capability()
    with pytest.raises(ValueError, match=f"'{name}'.*available"):
        _C.set_cpu_capability(name)
    assert _C.cpu_capability() == before


@pytest.mark.parametrize("name", [None, 2, ["avx2"]])
def test_a_capability_that_is_no_text_is_a_type_error(name):
    with pytest.raises(TypeError):
        _C.set_cpu_capability(name)


def test_the_choice_holds_for_all_threads():
    seen = []
    _C.set_cpu_capability("baseline")
    thread = threading.Thread(target=lambda: seen.append(_C.cpu_capability()))
    thread.start()
    thread.join()
    assert seen == ["baseline"]


def test_a_new_process_takes_the_best():
    result = capability_of_a_new_process()
    assert result.stdout.strip() == _C.available_cpu_capabilities()[-1], result.stderr


@pytest.mark.parametrize(
    "name", ["baseline", *(pytest.param(name, marks=pytest.mark.slow) for name in ("avx2", "avx512"))]
)
def test_the_environment_variable_forces_one(name):
    result = capability_of_a_new_process(FUSED_LOSSES_CPU_CAPABILITY=name)
    if name in _C.available_cpu_capabilities():
        assert result.stdout.strip() == name, result.stderr
    else:
        assert result.returncode != 0
        assert name in result.stderr


def test_an_empty_environment_variable_is_none_at_all():
    result = capability_of_a_new_process(FUSED_LOSSES_CPU_CAPABILITY="")
    assert result.stdout.strip() == _C.available_cpu_capabilities()[-1], result.stderr


def test_a_wrong_environment_variable_stops_the_import_with_a_message():
    result = capability_of_a_new_process(FUSED_LOSSES_CPU_CAPABILITY="sse9")
    assert result.returncode != 0
    assert "'sse9'" in result.stderr and "baseline" in result.stderr


def test_build_info_says_what_was_built():
    info = _C.build_info()
    assert info["version"] == fused_losses.__version__
    assert info["cpu_capabilities"] == _C.available_cpu_capabilities()
    assert info["compiler"]


def test_switching_while_other_threads_compute():
    """A call takes one set from its beginning to its end, whichever it is: the result is one of the sets' own."""
    logits, target = sample(CROSS_ENTROPY, (200, 100))
    results = {}
    for name in _C.available_cpu_capabilities():
        _C.set_cpu_capability(name)
        results[name] = CROSS_ENTROPY.ours(logits, target).item()
    stop, computed = threading.Event(), []

    def compute():
        while not stop.is_set():
            computed.append(CROSS_ENTROPY.ours(logits, target).item())

    thread = threading.Thread(target=compute)
    thread.start()
    while len(computed) < 50:
        for name in results:
            _C.set_cpu_capability(name)
    stop.set()
    thread.join()
    assert set(computed) <= set(results.values())
