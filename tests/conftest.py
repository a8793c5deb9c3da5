"""What every test relies on: checked shapes, one thread, fixed seeds, no network, an own cache."""

import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.checker  # noqa: F401  the hook finds it by name

# Packages whose functions take tensors; pydantic checks the descriptions (arch, recipe) already.
CHECKED = [f"etude.{name}" for name in ("nn", "ops", "objectives", "optim", "engine")]
install_import_hook(CHECKED, "tests.checker.check")

# Before torch is imported anywhere; workers of xdist and ranks started by tests inherit it.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

settings.register_profile("etude", deadline=None, derandomize=True, database=None)
settings.load_profile("etude")

SLOW_SECONDS = 1800
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def pytest_configure(config: pytest.Config) -> None:
    """One cache folder per test run, shared by its workers, instead of the user's."""
    if not hasattr(config, "workerinput"):
        os.environ["ETUDE_CACHE"] = tempfile.mkdtemp(prefix="etude-test-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["ETUDE_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """A test that draws numbers draws the same ones alone and in company."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A test that reaches for the network fails here, by name, instead of hanging elsewhere."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"a test tried to reach {address}; tests run without a network")
        connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect
