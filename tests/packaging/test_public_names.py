"""What a user finds in the package without knowing where it is: names, help, subpackages that nobody imported."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from importlib import resources

import pytest

import fused_losses


def test_every_public_name_is_there_and_documented() -> None:
    for module in (fused_losses, fused_losses.functional, fused_losses.autograd, fused_losses.distributed):
        assert sorted(module.__all__) == sorted(set(module.__all__) & set(dir(module))), module
        for name in module.__all__:
            assert name == "__version__" or pydoc.getdoc(getattr(module, name)), name


def test_subpackages_are_imported_when_they_are_asked_for() -> None:
    code = "import sys, fused_losses"
    for subpackage in ("integrations", "distributed"):
        assert subpackage in dir(fused_losses)
        code += f"""
assert "fused_losses.{subpackage}" not in sys.modules
assert fused_losses.{subpackage} is sys.modules["fused_losses.{subpackage}"]"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_there_is_an_attribute_error() -> None:
    for module in (fused_losses, fused_losses.integrations):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'cross_entropi'"):
            _ = module.cross_entropi


def test_an_integration_imports_its_framework_or_names_it() -> None:
    for integration in fused_losses.integrations.status():
        if integration.version is None:
            with pytest.raises(ModuleNotFoundError, match=integration.name):
                getattr(fused_losses.integrations, integration.name)


def test_types_are_shipped() -> None:
    package = resources.files(fused_losses)
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("_C.pyi").is_file()
