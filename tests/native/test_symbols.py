"""No kernel object shares a symbol with the copy of another instruction set.

See Note [No shared symbols] in csrc/cpu/vec_types.h.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import fused_losses._C as native

ROOT = Path(__file__).parents[2]
OBJECTS = sorted(ROOT.glob("build/kernels/*/csrc/cpu/*.o"))
CAPABILITIES = native.build_info()["cpu_capabilities"]


def defined_symbols(path: Path) -> list[tuple[str, str]]:
    """(kind, demangled name) of the symbols that the object defines for others."""
    listing = subprocess.run(
        ["nm", "--extern-only", "--defined-only", "--demangle", path], check=True, capture_output=True, text=True
    ).stdout
    return [tuple(line.split(maxsplit=2)[1:]) for line in listing.splitlines()]  # type: ignore[misc]


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
@pytest.mark.skipif(not OBJECTS, reason="no kernel objects under build/: fused_losses was not built in this checkout")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_kernel_object_defines_only_symbols_of_its_own_capability(path: Path) -> None:
    capability = path.parts[-4]
    symbols = defined_symbols(path)
    assert symbols, "a kernel object must define its entry point"
    for kind, name in symbols:
        assert kind == "T", f"{name} is a weak or vague symbol ({kind}): the linker would merge the copies"
        assert name.startswith(f"fused_losses::cpu::{capability}::"), name


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_extension_exports_nothing_but_its_module_function() -> None:
    extension = Path(native.__file__)
    assert extension.name.endswith(sysconfig.get_config_var("EXT_SUFFIX"))
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", extension], check=True, capture_output=True, text=True
    ).stdout
    kinds = {line.split()[-1]: line.split()[-2] for line in listing.splitlines()}
    assert {name for name, kind in kinds.items() if kind == "T"} == {"PyInit__C"}
    # Weak ones are what headers of torch and of the standard library define inline. The mangler counts characters.
    assert not [name for name in kinds if "12fused_losses" in name]
