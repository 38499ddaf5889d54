"""Shards of work over Ray actors: one model or engine a GPU, on this machine or on a cluster.

Ray does it all: it places the actors, starts a lost one again and gives it its shard again. The result of a shard
depends on nothing but the shard, so it does not matter how many actors there are. Actors end with the work: what runs
next finds their GPUs free. Without actors the work is done here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import cached_property
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Start = Callable[[], AbstractContextManager[Callable[[T], R]]]
RESTARTS = 3  # of one actor, whose process or node was lost; then the work fails


def spread(
    places: Sequence[int], shard: Callable[[int], T], start: Start[T, R], actors: int | None, gpus: int = 1
) -> Iterator[tuple[int, R]]:
    """The place and the result of every shard, as they are finished.

    `shard` gives the work of a place; `start` opens a model and yields the function from a shard to its result, once in
    each actor, which has `gpus` GPUs where there are any. `actors`: see `Profile`. What the function raises is raised.
    """
    if not places:
        return
    count, gpus = _plan(actors, gpus)
    if not count:
        with start() as compute:
            for place in places:
                yield place, compute(shard(place))
        return
    import ray
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.util import ActorPool

    lost = {"max_restarts": RESTARTS, "max_task_retries": -1}  # a shard is given again as long as its actor comes back
    actor_class = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD", **lost)(_Actor)
    workers = [actor_class.remote(start) for _ in range(min(count, len(places)))]
    pool = ActorPool(workers)
    try:
        for place in places:
            pool.submit(lambda actor, place: actor.run.remote(place, shard(place)), place)
        while pool.has_next():
            try:
                yield pool.get_next_unordered()
            except RayTaskError as error:
                raise error.cause from error
            except ActorDiedError as error:
                raise RuntimeError(
                    f"an actor was lost {RESTARTS + 1} times, mostly for want of memory: lower batch_tokens or "
                    "generation.batch_size, or see Ray's logs in /tmp/ray/session_latest/logs"
                ) from error
            while idle := pool.pop_idle():  # no shard is left for it; a lost actor may need its GPU
                _end(idle)
    finally:
        for actor in workers:
            ray.kill(actor)


def connect() -> list[int]:
    """Join the cluster of RAY_ADDRESS, or start Ray here: the number of GPUs of each machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def shards_of(count: int, size: int) -> list[range]:
    """`count` rows in shards of `size`, the last one smaller."""
    return [range(count)[first : first + size] for first in range(0, count, size)]


class _Actor(Generic[T, R]):
    """Opens the model with its first shard and keeps it."""

    def __init__(self, start: Start[T, R]) -> None:
        self._start, self._opened = start, ExitStack()

    @cached_property
    def _compute(self) -> Callable[[T], R]:
        return self._opened.enter_context(self._start())

    def run(self, place: int, shard: T) -> tuple[int, R]:
        return place, self._compute(shard)

    def close(self) -> tuple[str, int]:
        """Close the model; the machine and the process."""
        self._opened.close()
        return os.uname().nodename, os.getpid()


def _end(actor: Any) -> None:
    """End an idle actor, and on this machine wait for the end of its process: only then is its GPU free."""
    import psutil
    import ray

    with suppress(ray.exceptions.RayActorError, psutil.NoSuchProcess):
        machine, process = ray.get(actor.close.options(max_task_retries=0).remote())
        ray.kill(actor)
        if machine == os.uname().nodename:
            psutil.Process(process).wait()


def _plan(actors: int | None, gpus: int) -> tuple[int, int]:
    """How many actors (0: work here), and how many GPUs each."""
    if actors == 0:
        return 0, 0
    if actors is None and "RAY_ADDRESS" not in os.environ:
        import torch

        if not torch.cuda.device_count():
            return 0, 0
    nodes = connect()
    if not sum(nodes):
        return actors or 0, 0
    room = sum(here // gpus for here in nodes)
    if room < (actors or 1):
        raise ValueError(
            f"actors: {actors or 1} with {gpus} GPUs each do not fit into {sum(nodes)} GPUs on {len(nodes)} machines; "
            "lower actors or generation.engine.tensor_parallel_size"
        )
    return actors or room, gpus
