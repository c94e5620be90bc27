"""What reads the compiler's output, on excerpts of it, and the occupancy, against what NVIDIA published."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.cuda_resources import compilation
from benchmarks.cuda_resources.__main__ import ARCHITECTURES
from benchmarks.cuda_resources.kernel_names import natural_order, short_name
from benchmarks.cuda_resources.machine_code import (
    GlobalAccesses,
    count_in_machine_code,
    count_in_ptx,
    should_be_wide,
    should_store,
)
from benchmarks.cuda_resources.occupancy import LIMITS, occupancy
from benchmarks.cuda_resources.resources import Resources, parse_max_threads, parse_resources
from benchmarks.cuda_resources.toolchain import find_program

LOG = """\
ptxas info    : 240 bytes gmem
ptxas info    : Compiling entry function '_Z5tightv' for 'sm_90'
ptxas info    : Function properties for _Z5tightv
    24 bytes stack frame, 40 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size, 384 bytes smem
ptxas info    : Compile time = 656.940 ms
ptxas info    : Compiling entry function '_Z5smallv' for 'sm_90'
ptxas info    : Function properties for _Z5smallv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers
"""
PTX = """\
.entry _Z5smallv(
)
.maxntid 256, 1, 1
{
\tld.global.nc.u32 \t%r1, [%rd1];
\tld.global.cs.v4.u32 \t{%r2, %r3, %r4, %r5}, [%rd2];
\tld.global.v2.f64 \t{%fd1, %fd2}, [%rd2];
\tld.param.u64 \t%rd1, [_Z5smallv_param_0];
\tst.shared.v4.u32 \t[%r1], {%r2, %r3, %r4, %r5};
\t@%p1 st.global.v4.f32 \t[%rd3], {%f1, %f2, %f3, %f4};
}
.visible .entry _Z5tightv(
)
.maxntid 32, 4, 1
.minnctapersm 8
{
\tst.global.v2.u16 \t[%rd3], {%rs1, %rs2};
}
"""
LISTING = """\
\t.section\t.text._Z5smallv,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E.U8 R5, desc[UR4][R2.64+0x1] ;
        /*0030*/                   LDL.128 R4, [R1] ;
        /*0040*/             @!UP0 STG.E.128 desc[UR4][R2.64], R4 ;
        /*0050*/                   ST.E desc[UR4][R2.64], R4 ;
        /*10060*/                  LDG.E.ENL2.256 R8, R4, desc[UR4][R2.64] ;
\t.section\t.text._Z5tightv,"ax",@progbits
        /*0000*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
"""


def test_resources_of_every_kernel():
    assert parse_resources(LOG, PTX) == {
        "_Z5tightv": Resources(registers=128, shared_bytes=384, stack_bytes=24, spill_bytes=72, threads=128),
        "_Z5smallv": Resources(registers=28, shared_bytes=0, stack_bytes=0, spill_bytes=0, threads=256),
    }


def test_kernel_that_the_log_lacks_is_an_error():
    with pytest.raises(ValueError, match="_Z5extrav"):
        parse_resources(LOG, PTX + ".entry _Z5extrav(\n)\n.maxntid 1, 1, 1\n")


def test_kernel_without_launch_bounds_is_an_error():
    with pytest.raises(ValueError, match=r"no __launch_bounds__: .*_Z4freev"):
        parse_max_threads(".entry _Z4freev()\n" + PTX)


def test_accesses_in_machine_code():
    counted = count_in_machine_code(LISTING)
    assert counted["_Z5smallv"] == GlobalAccesses(wide_loads=2, narrow_loads=1, wide_stores=1, narrow_stores=1)
    assert counted["_Z5tightv"] == GlobalAccesses(narrow_loads=1)


def test_accesses_in_ptx():
    counted = count_in_ptx(PTX)
    assert counted["_Z5smallv"] == GlobalAccesses(wide_loads=2, narrow_loads=1, wide_stores=1)
    assert counted["_Z5tightv"] == GlobalAccesses(narrow_stores=1)


def test_short_names():
    kernel = "cross_entropy_register_rows_kernel<fused_losses::Float16, fused_losses::cuda::(anonymous namespace)::"
    demangled = f"void fused_losses::cuda::(anonymous namespace)::{kernel}RowGeometry<32, 4> >(fused_losses::Params)"
    assert short_name(demangled) == "cross_entropy_register_rows_kernel<Float16, RowGeometry<32, 4>>"
    assert short_name("fused_losses::cuda::(anonymous namespace)::reduce_losses_kernel(int)") == "reduce_losses_kernel"


def test_numbers_in_names_are_sorted_by_value():
    assert sorted(["rows<32, 1>", "rows<4, 1>", "a<9>"], key=natural_order) == ["a<9>", "rows<4, 1>", "rows<32, 1>"]


@pytest.mark.parametrize(
    ("kernel", "wide"),
    [
        ("cross_entropy_few_classes_kernel<float, 8, true>", True),
        ("cross_entropy_few_classes_kernel<float, 8, false>", False),
        ("cross_entropy_inner_kernel<float, 2, false, NoTerms>", False),
        ("nll_loss_backward_kernel<double>", False),
        ("a_kernel_of_tomorrow<float>", True),
    ],
)
def test_kernels_that_should_be_wide(kernel, wide):
    assert should_be_wide(kernel) == wide


def test_kernels_that_only_read_need_no_wide_stores():
    assert not should_store("token_statistics_kernel<float, 32, false>")
    assert should_store("token_statistics_backward_kernel<float, 32, false>")


def kernel(threads, registers, shared_bytes=0):
    return Resources(registers, shared_bytes, stack_bytes=0, spill_bytes=0, threads=threads)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared_bytes", "blocks", "fraction", "limited_by"),
    [
        # CUDA C++ Best Practices Guide, Calculating Occupancy: 65536 registers and 64 warps an SM (there of 7.0).
        # 320 threads: five blocks if warps could lie anywhere, four as each has its quarter of the SM.
        (90, 128, 32, 0, 16, 1.0, "warps"),
        (90, 128, 37, 0, 12, 0.75, "registers"),
        (90, 320, 37, 0, 4, 0.625, "registers"),
        # CUDA C++ Programming Guide, Multiprocessor Level: two blocks of 512 threads with 64 registers, one with 65.
        (90, 512, 64, 0, 2, 0.5, "registers"),
        (90, 512, 65, 0, 1, 0.25, "registers"),
        # CUDA Programming Guide, on 10.0: 32 blocks of 32 threads are half of the SM's threads.
        (100, 32, 16, 0, 32, 0.5, "blocks"),
        # https://siboehm.com/articles/22/CUDA-MMM, on 8.6: 1024 threads, 37 registers, 8 KB. Without the limit on warps
        # eleven blocks by shared memory, of which 1 KB a block is CUDA's own.
        (86, 1024, 37, 8192, 1, 2 / 3, "warps"),
        (86, 64, 37, 8192, 11, 22 / 48, "shared memory"),
    ],
)
def test_published_occupancy(architecture, threads, registers, shared_bytes, blocks, fraction, limited_by):
    result = occupancy(kernel(threads, registers, shared_bytes), architecture)
    assert (result.blocks, result.limited_by) == (blocks, limited_by)
    assert result.fraction == pytest.approx(fraction)


def test_block_that_does_not_fit():
    assert occupancy(kernel(1024, 65), 90).blocks == 0


CALCULATOR = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int warps, shared_per_sm, threads, registers, shared;
  cudaOccDeviceProp device;
  while (std::scanf("%d %d", &device.computeMajor, &device.computeMinor) == 2 &&
         std::scanf("%d %d %d %d %d", &warps, &shared_per_sm, &threads, &registers, &shared) == 5) {
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 32 * warps;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_per_sm;
    device.sharedMemPerBlockOptin = shared_per_sm - 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = threads;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0) != 0) return 1;
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_is_that_of_the_toolkit(tmp_path):
    nvcc = find_program("nvcc")
    includes = [Path("/usr/local/cuda/include")]
    if nvcc is not None:
        includes.insert(0, Path(nvcc).resolve().parents[1] / "include")
    include = next((folder for folder in includes if (folder / "cuda_occupancy.h").exists()), None)
    if include is None or shutil.which("g++") is None:
        pytest.skip("no cuda_occupancy.h, or no g++")
    program = tmp_path / "calculator"
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    subprocess.run(["g++", f"-I{include}", str(tmp_path / "calculator.cpp"), "-o", str(program)], check=True)

    grid = list(itertools.product(LIMITS, range(32, 1025, 32), range(16, 256), (0, 32, 640, 9000, 40000)))
    lines = [
        f"{it // 10} {it % 10} {LIMITS[it].warps} {LIMITS[it].shared_bytes} {threads} {registers} {shared_bytes}"
        for it, threads, registers, shared_bytes in grid
    ]
    finished = subprocess.run([str(program)], input="\n".join(lines), check=True, capture_output=True, text=True)
    theirs = [int(line) for line in finished.stdout.splitlines()]
    ours = [
        occupancy(kernel(threads, registers, shared_bytes), it).blocks for it, threads, registers, shared_bytes in grid
    ]
    different = [(*case, mine, other) for case, mine, other in zip(grid, ours, theirs, strict=True) if mine != other]
    assert different[:5] == []


def test_the_page_is_of_these_sources_and_has_nothing_to_complain_of():
    """Compiling all of it takes a quarter of an hour: `python -m benchmarks.cuda_resources --write` does."""
    page = (Path(__file__).parents[2] / "docs" / "cuda_resources.md").read_text()
    command = "run python -m benchmarks.cuda_resources --write docs/cuda_resources.md"
    assert f"`{compilation.digest_of_sources()}`" in page, f"the page is of other sources: {command}"
    said = re.search(r"(\d+) kernels on (\d+) architectures, (\d+) complaints", page)
    assert said is not None and int(said[1]) > 1000
    assert (int(said[2]), int(said[3])) == (len(ARCHITECTURES), 0)


def test_the_digest_is_of_the_code_alone(monkeypatch, tmp_path):
    (tmp_path / "core").mkdir()
    monkeypatch.setattr(compilation, "SOURCES", tmp_path / "cuda")
    compilation.SOURCES.mkdir()
    digests = []
    for code in ("int a;  // once\n", "/* of two\nlines */ int\n  a;", "int b;"):
        (tmp_path / "cuda" / "kernel.cu").write_text(code)
        digests.append(compilation.digest_of_sources())
    assert digests[0] == digests[1] != digests[2]
