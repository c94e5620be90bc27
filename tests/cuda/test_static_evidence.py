"""The CUDA kernels as nvcc compiles them: nothing is spilled, and what works on packets moves 16 bytes at a time.

For one architecture; test_static_evidence_tools.py sees that the page of all of them is of these sources. In a clean
checkout the compilers take minutes; their results are kept under build/.
"""

import shutil
import warnings

import pytest
from compilation import locked

from benchmarks.cuda_resources.__main__ import main
from benchmarks.cuda_resources.compilation import BUILD, SOURCES, compile_all, compile_unit
from benchmarks.cuda_resources.evidence import collect, complaints
from benchmarks.cuda_resources.machine_code import count_in_machine_code, count_in_ptx, disassemble
from benchmarks.cuda_resources.toolchain import MissingToolError, find_toolchain

pytestmark = pytest.mark.slow

HOPPER = 90


@pytest.fixture(scope="module")
def toolchain():
    try:
        return find_toolchain()
    except MissingToolError as error:
        warnings.warn(f"The CUDA kernels are NOT COMPILED and not looked at: {error}", stacklevel=1)
        pytest.skip(f"the CUDA kernels are not compiled: {error}")


@pytest.fixture(scope="module")
def units(toolchain):
    with locked(BUILD / "sources"):
        return compile_all(toolchain, [HOPPER])


@pytest.fixture(scope="module")
def evidence(toolchain, units):
    return collect(toolchain, units)


def test_every_source_with_kernels_is_seen(evidence):
    with_kernels = {path.name for path in SOURCES.glob("*.cu")} - {"cross_entropy.cu"}  # which only dispatches
    assert {it.source for it in evidence} == with_kernels


def test_nothing_is_spilled_and_packets_are_moved_whole(evidence):
    assert complaints(evidence) == []


def test_every_kernel_can_be_launched(evidence):
    assert [str(it) for it in evidence if it.occupancy.blocks == 0] == []


def test_machine_code_has_the_wide_accesses_of_the_ptx(toolchain, units):
    if toolchain.disassembler is None:
        pytest.skip("no nvdisasm here: pip install nvidia-cuda-nvdisasm")
    for unit in (unit for unit in units if unit.source.name == "cross_entropy_float32.cu"):
        in_ptx = count_in_ptx(unit.ptx.read_text())
        in_machine_code = count_in_machine_code(disassemble(unit.cubin, toolchain.disassembler))
        for kernel, accesses in in_ptx.items():
            found = in_machine_code[kernel]
            # The assembler may copy an access, where it unrolls or duplicates a branch, but not split it.
            assert found.wide_loads >= accesses.wide_loads, kernel
            assert found.wide_stores >= accesses.wide_stores, kernel


PLANTED = {
    # 128 numbers are live at a time, and 1024 threads may have 64 registers each.
    "spills": """
__global__ void __launch_bounds__(1024) spilling_kernel(float4* data) {
  float4 kept[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) kept[i] = data[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 32; ++i) data[threadIdx.x + 1024 * (31 - i)] = kept[i];
}
""",
    "in local memory": """
__global__ void __launch_bounds__(1024) indexing_kernel(float4* data, const int* places) {
  float kept[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) kept[i] = data[threadIdx.x + 1024 * i].x;
  float4 sum = data[threadIdx.x];
#pragma unroll 1
  for (int i = 0; i < 16; ++i) sum.x += kept[places[i]];
  data[threadIdx.x] = sum;
}
""",
    "lacks 16-byte accesses": """
__global__ void __launch_bounds__(1024) narrow_kernel(float2* data) { data[threadIdx.x].x *= data[threadIdx.x].y; }
""",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(fault, toolchain, tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED[fault])
    found = complaints(collect(toolchain, [compile_unit(toolchain, source, HOPPER, build=tmp_path)]))
    assert [fault in complaint for complaint in found] == [True], found


def test_changed_header_compiles_again(toolchain, tmp_path):
    source, header = tmp_path / "planted.cu", tmp_path / "kernel.cuh"
    source.write_text('#include "kernel.cuh"\n')
    header.write_text(PLANTED["spills"])
    first = compile_unit(toolchain, source, HOPPER, build=tmp_path)
    assert "spilling_kernel" in first.ptx.read_text()
    modified = first.cubin.stat().st_mtime_ns
    assert compile_unit(toolchain, source, HOPPER, build=tmp_path).cubin.stat().st_mtime_ns == modified
    header.write_text(PLANTED["lacks 16-byte accesses"])
    assert "narrow_kernel" in compile_unit(toolchain, source, HOPPER, build=tmp_path).ptx.read_text()


def test_command_without_nvcc_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *arguments, **keywords: None)
    assert main([]) == 2
    assert "nvcc is neither in CUDA_HOME/bin nor on PATH" in capsys.readouterr().err
