"""A GPU that is not there, and packages of others as they were published."""

import pytest
from gpu_stand_in import make_gpu
from published_peers import publish_all


@pytest.fixture
def gpu(monkeypatch):
    return make_gpu(monkeypatch)


@pytest.fixture
def published(monkeypatch):
    publish_all(monkeypatch)
