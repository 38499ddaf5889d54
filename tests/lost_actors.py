"""A Ray cluster of two nodes, its actors, and stages that lose one half-way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from rlhflow_utils.guide.spread import spread


def actors(state: str = "", name: str = "_Actor") -> list[psutil.Process]:
    """The actors that are there; `state` is ".run" for those that are at work."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline() and process.cmdline()[0].startswith(f"ray::{name}{state}"):
                found.append(process)
    return found


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes on loopback, that is two raylets, each said to have a GPU; RAY_ADDRESS names it."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = start_cluster()
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def start_cluster(attempts: int = 3) -> Any:
    """Ray gives a node thirty seconds to start, and no setting changes that: too few on a busy machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_gpus=1, include_dashboard=False)
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
        return start_cluster(attempts - 1)
    return cluster


@contextmanager
def one_is_killed(module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, what `module` spreads loses an actor at work after the first shard; the actor's children end with it."""
    killed: list[psutil.Process] = []

    def killing(*arguments: Any) -> Iterator[Any]:
        for found in spread(*arguments):
            for process in actors(".run")[:1] if not killed else []:
                killed.extend([process, *process.children(recursive=True)])
                process.kill()
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(module, "spread", killing)
        yield
    assert killed
    assert not psutil.wait_procs(killed, timeout=20)[1]
