"""Fixtures and settings that every test shares: the devices at hand, fixed seeds, Hypothesis without randomness."""

import os

# OpenMP's threads sleep while they wait. By default they spin, which on a machine that is busy with other work makes a
# small tensor wait for the scheduler: the suite then takes five times as long. OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

settings.register_profile("reproducible", derandomize=True, deadline=None, print_blob=True, max_examples=250)
settings.load_profile("reproducible")


def pytest_report_header(config):
    if torch.cuda.is_available():
        return f"fused_losses: CUDA tests run on {torch.cuda.get_device_name()}"
    return "fused_losses: CUDA tests are SKIPPED, torch sees no GPU here"


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(20240229)


@pytest.fixture
def restore_num_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
