"""What setup.py says where it cannot build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")
pytest.importorskip("ninja")

ROOT = Path(__file__).parents[2]


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    folders = [f"--build-temp={tmp_path}", f"--build-lib={tmp_path}"]
    # ninja's own folder: where the virtual environment is not activated PATH lacks it, and setuptools compiles.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    finished = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "CXX": "no-such-compiler -x", "FUSED_LOSSES_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "fused_losses: there is no C++ compiler no-such-compiler -x: install GCC 12" in finished.stderr
    assert not list(tmp_path.iterdir())
