"""A Ray cluster of this machine alone, of nodes with a processor core each as far as Ray knows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SETTINGS: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # Nothing of these tests runs before it is asked for.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Ray's own 15 gives a worker a thirtieth of a core on which anything else runs: it is not placed in time there.
    "RAY_worker_niceness": "0",
}


class Nodes:
    """Its nodes, of which the first is the head.

    Args:
        environment: In which they and all that they start run.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self._environment = {**environment, **SETTINGS}
        self._others: list[Any] = []
        with self._in_environment():
            self._cluster = Cluster(
                initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
            )

    @property
    def address(self) -> str:
        """The head's."""
        return str(self._cluster.address)

    @property
    def logs(self) -> Path:
        """Where Ray and its workers print."""
        return Path(self._cluster.head_node.get_logs_dir_path())

    def add(self) -> None:
        """Start one more."""
        with self._in_environment():
            self._others.append(self._cluster.add_node(num_cpus=1))

    def kill(self) -> None:
        """Kill the newest, with all that runs there."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def end(self) -> None:
        """End all."""
        self._cluster.shutdown()

    @contextmanager
    def _in_environment(self) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self._environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def ray_nodes(count: int, environment: Mapping[str, str]) -> Iterator[Nodes]:
    """So many nodes; gone afterwards.

    Args:
        count: One or more.
        environment: See `Nodes`.
    """
    nodes = Nodes(environment)
    try:
        for _ in range(count - 1):
            nodes.add()
        yield nodes
    finally:
        nodes.end()
