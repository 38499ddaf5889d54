"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Test processes are many and their models tiny: one thread each is fastest, and the hub is never asked.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from loopback import ChatServer, Reply

from rlhflow_utils.guide.run import quiet_libraries
from rlhflow_utils.guide.stage import PROJECT

quiet_libraries()
DATA_ROOT = PROJECT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real rows in native schemas, kept beside the project; absent on most machines, required in CI."""
    if not DATA_ROOT.is_dir():
        if os.environ.get("RLHFLOW_REQUIRE_DATA") == "1":
            pytest.fail("RLHFLOW_REQUIRE_DATA=1 but ../shared/data is absent")
        pytest.skip("the real data slices (../shared/data) are not on this machine")
    return DATA_ROOT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-dir", default=None, help="run folder of a finished guide run, for tests/guide_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest starts first; else one worker would end alone with it."""

    def allowed_seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=allowed_seconds, reverse=True)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, str], Reply]], ChatServer]]:
    """Starts chat servers on loopback and closes them after the test."""
    servers: list[ChatServer] = []

    def start(answer: Callable[[int, str], Reply]) -> ChatServer:
        servers.append(ChatServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
