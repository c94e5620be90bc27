"""What `python -m fused_losses` says of this environment, and that neither it nor the package imports a framework."""

import subprocess
import sys

import fused_losses
from fused_losses import integrations

NAMES = ["transformers", "timm", "trl", "torchvision", "lightning"]


def test_the_command_lists_every_integration():
    printed = subprocess.run(
        [sys.executable, "-m", "fused_losses"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert printed[0].startswith(f"fused_losses {fused_losses.__version__}, torch ")
    assert [line.split()[0].rstrip(":") for line in printed[1:]] == NAMES
    assert printed[1:] == [f"  {integration}" for integration in integrations.status()]


def test_a_framework_that_is_missing_and_one_that_is_there():
    assert str(integrations.Integration("timm", None, False, "does")) == "timm: not installed"
    assert str(integrations.Integration("timm", "1.0", False, "does")) == "timm 1.0, not enabled: does"
    assert str(integrations.Integration("timm", "1.0", True, "does")) == "timm 1.0, enabled: does"


def test_no_framework_is_imported():
    code = "import sys, fused_losses; fused_losses.integrations.status(); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not set(NAMES) & set(loaded)
