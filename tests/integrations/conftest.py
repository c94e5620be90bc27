"""Frameworks at hand, and none left changed behind."""

import complete_torchvision  # noqa: F401
import pytest

import fused_losses
from fused_losses import integrations


def pytest_report_header(config):
    return ["fused_losses: " + str(integration) for integration in integrations.status()]


@pytest.fixture(autouse=True)
def nothing_stays_enabled():
    yield
    fused_losses.unpatch()
    assert not [integration.name for integration in integrations.status() if integration.enabled]
