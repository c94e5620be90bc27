"""Makes the package `benchmarks`, which is not installed, importable from the repository's root."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu_stand_in import make_gpu
from published_peers import publish_all


@pytest.fixture
def gpu(monkeypatch):
    return make_gpu(monkeypatch)


@pytest.fixture
def published(monkeypatch):
    publish_all(monkeypatch)
