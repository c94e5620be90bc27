"""The kernels' instructions beside what each GPU can issue while its memory moves what they need."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cuda_resources.compilation import SOURCES, CompiledUnit
from benchmarks.cuda_resources.control_flow import ControlFlow, control_flow
from benchmarks.cuda_resources.issue_budget import DEVICES, Device
from benchmarks.cuda_resources.kernel_names import demangle
from benchmarks.cuda_resources.kernel_work import Cost, Problem, problems
from benchmarks.cuda_resources.machine_code import disassemble
from benchmarks.cuda_resources.toolchain import MissingToolError, Toolchain

BUDGET_SOURCES = tuple(
    SOURCES / f"{name}.cu"
    for name in (
        "cross_entropy_float32",
        "cross_entropy_bfloat16",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
    )
)
BUDGET_ARCHITECTURES = tuple(sorted({device.architecture for device in DEVICES}))
TOLERANCE = 1.1
SHORT_ROWS_TOLERANCE = 2.0


@dataclass(frozen=True)
class Share:
    """What one problem takes of one GPU's budget."""

    problem: Problem
    device: Device
    cost: Cost

    @property
    def budget(self) -> float:
        return self.device.instructions(self.problem.moved_bytes)

    @property
    def issued(self) -> float:
        """Of the budget; 1: instructions and memory take equally long."""
        return self.cost.issued / self.budget

    @property
    def special(self) -> float:
        return self.cost.special / self.device.special_functions(self.problem.moved_bytes)

    @property
    def tolerance(self) -> float:
        return SHORT_ROWS_TOLERANCE if self.problem.is_short else TOLERANCE

    @property
    def is_above(self) -> bool:
        return max(self.issued, self.special) > self.tolerance

    def __str__(self) -> str:
        return f"{self.problem}, on {self.device.name}"


def shares(toolchain: Toolchain, units: Sequence[CompiledUnit]) -> list[Share]:
    """Of every problem on every GPU whose machine code is among the units."""
    found: list[Share] = []
    for device in DEVICES:
        flows = _flows(toolchain, [unit for unit in units if unit.architecture == device.architecture])
        if flows:
            found += [
                Share(problem, device, problem.cost(flows[problem.kernel])) for problem in problems(device.architecture)
            ]
    return found


def _flows(toolchain: Toolchain, units: Sequence[CompiledUnit]) -> dict[str, ControlFlow]:
    if toolchain.disassembler is None:
        raise MissingToolError("instructions are counted in machine code: pip install nvidia-cuda-nvdisasm")
    flows: dict[str, ControlFlow] = {}
    for unit in units:
        if unit.source not in BUDGET_SOURCES:
            continue
        of_unit = control_flow(disassemble(unit.cubin, toolchain.disassembler))
        names = demangle(of_unit, toolchain.demangler)
        flows |= {names[kernel]: flow for kernel, flow in of_unit.items()}
    return flows
