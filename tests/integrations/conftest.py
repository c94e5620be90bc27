"""Frameworks at hand, and none left changed behind."""

import importlib.util
from pathlib import Path

import pytest
import torch

import fused_losses
from fused_losses import integrations


def _complete_torchvision():
    """PyPI's wheel is built for a CUDA torch: beside a CPU one its library does not load, and its Python part, which is
    all that these tests use, misses two operators."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        return
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_complete_torchvision()


def pytest_report_header(config):
    return ["fused_losses: " + str(integration) for integration in integrations.status()]


@pytest.fixture(autouse=True)
def nothing_stays_enabled():
    yield
    fused_losses.unpatch()
    assert not [integration.name for integration in integrations.status() if integration.enabled]
