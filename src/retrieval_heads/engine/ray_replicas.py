"""Replicas on the nodes of a Ray cluster: Ray places an actor for each, and says when one is lost.

All that is said to a replica is a call of its actor, so that no port is opened and no key crosses but by Ray. The
router in front is that of one host's replicas.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from retrieval_heads.engine.backends.on_ray import RaySettings
from retrieval_heads.engine.client import EngineClient, EngineLost
from retrieval_heads.engine.jobs import Run
from retrieval_heads.engine.log import tail
from retrieval_heads.engine.messages import Hello, Message
from retrieval_heads.engine.ray_actor import EngineActor
from retrieval_heads.engine.replica import Replica, log_of, wait_ready
from retrieval_heads.engine.replicas import Router
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError
from retrieval_heads.redaction import without_secrets
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.identity import chooses_kernels

_CALLS: Final = 64
"""Of an actor at once; each run and each free question waits in one."""
_RESTARTS: Final = 1
"""Of an actor that is lost: what ends one node after the other is no chance."""
_UNTIL_THERE: Final = {"max_task_retries": -1}
"""Of a call that waits for an actor which Ray places, or places again."""
_OFTEN: Final = 1.0
"""Seconds between two looks at a log."""
_REACHED: Final = 10.0
"""Seconds in which the head must take a connection."""


def launched(server: Server, hello: Hello) -> Router:
    """Have Ray place the replicas, and wait until all are ready.

    Args:
        server: Is told of them.
        hello: What this process was told to load.

    Raises:
        EngineError: There is no cluster, it has no room for them, or one did not start; in one sentence.
    """
    settings = RaySettings.of(hello.options)
    join(settings.address)
    count = _how_many(hello, settings)
    replicas = [
        RayReplica.asked_for(f"replica {number} of {count}", replace(hello, log=str(log_of(hello, number))), settings)
        for number in range(1, count + 1)
    ]
    _wait_placed(replicas, hello, settings)
    infos = wait_ready(replicas)
    devices = [f"{info['device']}, {one.place}" for info, one in zip(infos, replicas, strict=True)]
    first = {name: said for name, said in infos[0].items() if name != "gpus"}  # they are none of this host's
    server.started({**first, "replicas": count, "devices": devices})
    return Router(server, replicas, infos[0])


def join(address: str) -> None:
    """Join the cluster of an address.

    Raises:
        EngineError: It is not there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if found := re.fullmatch(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)", address):  # Ray itself would try for a minute
        try:
            socket.create_connection((found["host"].strip("[]"), int(found["port"])), _REACHED).close()
        except OSError as error:
            raise EngineError(
                f"engine.address: there is no Ray cluster at {address} ({error.strerror or error})"
            ) from None
    try:
        ray.init(address, namespace=f"retrieval-heads-{secrets.token_hex(4)}", log_to_driver=False)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and others
        said = " ".join(str(error).split())
        raise EngineError(f"engine.address: no Ray cluster could be joined at {address}: {said}"[:400]) from None


def _how_many(hello: Hello, settings: RaySettings) -> int:
    if hello.replicas != "auto":
        return int(hello.replicas)
    gpus = settings.gpus_of(hello.model)
    nodes = _nodes()
    return max(1, sum(int(node.get("GPU", 0)) // gpus for node in nodes) if gpus else len(nodes))


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is there."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wait_placed(replicas: list[RayReplica], hello: Hello, settings: RaySettings) -> None:
    """Wait until Ray has found a node for each.

    Raises:
        EngineError: It has not in time, or an actor died at its start.
    """
    give_up = time.monotonic() + settings.place_limit
    placed = sum([one.is_placed(max(0.0, give_up - time.monotonic())) for one in replicas])
    if placed == len(replicas):
        return
    nodes, each = _nodes(), settings.gpus_of(hello.model)
    gpus, cpus = (int(sum(node.get(what, 0) for node in nodes)) for what in ("GPU", "CPU"))
    hint = "; engine.gpus: 0 is for vLLM's CPU build" if each and not gpus else ""
    raise EngineError(
        f"engine.replicas: Ray placed {placed} of {len(replicas)} replicas of {each} GPU and "
        f"{settings.cpus} CPU each within {settings.place_limit:g} s (engine.place_limit); the cluster's nodes have "
        f"{gpus} GPU and {cpus} CPU together, {len(nodes)} of them{hint}"
    )


class RayReplica(Replica):
    """One in an actor.

    Args:
        name: See `Replica`.
        hello: What to load, and where it is logged.
        settings: The cluster's.
        actor: The actor, which Ray places, and places again once it is lost.
    """

    def __init__(self, name: str, hello: Hello, settings: RaySettings, actor: Any) -> None:
        super().__init__(name)
        self._hello = replace(hello, replicas=1)
        self._settings = settings
        self._actor = actor
        self._log = Path(hello.log)
        self._copying = threading.Lock()
        self._copied = 0
        self._token = secrets.token_hex(8)
        """Tells the actor's engine from the one that it launched before it was placed again."""
        self.place = "no node"
        self._placed = actor.place.options(**_UNTIL_THERE).remote()

    @classmethod
    def asked_for(cls, name: str, hello: Hello, settings: RaySettings) -> RayReplica:
        """One for which Ray looks for a node."""
        import ray

        options = {"num_gpus": settings.gpus_of(hello.model), "num_cpus": settings.cpus, "max_restarts": _RESTARTS}
        made = ray.remote(EngineActor).options(max_concurrency=_CALLS, scheduling_strategy="SPREAD", **options)
        return cls(name, hello, settings, made.remote())

    def is_placed(self, seconds: float) -> bool:
        """Whether Ray has found one; waits so long at most.

        Raises:
            EngineError: The actor died.
        """
        import ray

        try:
            self.place = ray.get(self._placed, timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayError as error:
            raise EngineError(f"{self.name} did not start: its actor died ({_reason(error)})") from None
        return True

    def wait_ready(self) -> Facts:
        """Wait until its model is loaded."""
        import ray

        if not self.is_placed(self._settings.place_limit):
            raise EngineError(f"Ray placed it nowhere within {self._settings.place_limit:g} s (engine.place_limit)")
        threading.Thread(target=self._follow_log, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if _goes_along(name)}
        folder = os.getcwd()  # noqa: PTH109
        try:
            reply: Message = ray.get(
                self._actor.launch.remote(self._token, self._hello.to_json(), self.name, folder, environment)
            )
        except ray.exceptions.RayError as error:
            raise EngineError(f"{self.name} did not start: its actor on {self.place} died ({_reason(error)})") from None
        self._copy_log()
        if "error" in reply:
            raise EngineError(reply["error"])
        info: Facts = reply["info"]
        return info

    def client(self, run: str) -> EngineClient:
        """What asks it for a run."""
        return _ActorClient(self._actor, self._token, run, self.place)

    def begin(self, asker: EngineClient, run: Run) -> None:
        """Begin a run. Its earlier results cross as they were read: their file is here, and may have grown."""
        lines = [json.dumps(record.to_json()) for record in run.earlier.values()]
        asker.call({"do": "begin", "earlier": None, "who": f"run {run.name}", "results": lines})

    def last_words(self, error: EngineError) -> str:
        """How it ended."""
        if isinstance(error, EngineLost):
            return str(error)
        self._copy_log()
        return f"{error}{tail(self._log)}"

    def successor(self) -> Replica | None:
        """The same actor where Ray places it next; its log goes on in the same file."""
        return RayReplica(self.name, self._hello, self._settings, self._actor)

    def _follow_log(self) -> None:
        """Copy what its engine prints, for as long as it can be asked."""
        while self._copy_log() and not self.is_lost:
            time.sleep(_OFTEN)

    def _copy_log(self) -> bool:
        """Copy what was printed meanwhile; whether more can be copied."""
        import ray

        with self._copying:
            try:
                while more := ray.get(self._actor.printed.remote(self._token, self._copied), timeout=_REACHED):
                    with self._log.open("ab") as log:
                        log.write(more)
                    self._copied += len(more)
            except ray.exceptions.GetTimeoutError:
                return True
            except (ray.exceptions.RayError, OSError) as error:
                print(f"{self._log.name} lacks what {self.name} prints from here on: {_reason(error)}", file=sys.stderr)
                return False
        return True


class _ActorClient(EngineClient):
    """Asks a replica by calls of its actor.

    Args:
        actor: The actor.
        token: The replica's; an actor that was placed again has another.
        run: The run that it asks for.
        place: Where the actor is, for users.
    """

    def __init__(self, actor: Any, token: str, run: str, place: str) -> None:
        self._actor = actor
        self._token = token
        self._run = run
        self._place = place
        self._name = secrets.token_hex(4)

    def exchanged(self, message: Message) -> Message:
        """Send a message; the reply."""
        import ray

        reply: Message | None = None
        try:
            reply = ray.get(self._actor.call.remote(self._token, self._name, self._run, message))
        except ray.exceptions.RayError as error:
            print(f"{self._place}: {_reason(error)}", file=sys.stderr, flush=True)
        if reply is None:
            raise EngineLost(f"was lost with its actor on {self._place}")
        return reply

    def close(self) -> None:
        """Hang up."""
        self._actor.hang_up.remote(self._name)


def _goes_along(variable: str) -> bool:
    """Whether an environment variable of this process is for its replicas as well; the others are their nodes' own."""
    return chooses_kernels(variable) or variable.startswith("RH_")


def _reason(error: Exception) -> str:
    """What Ray says, in one line."""
    return without_secrets(" ".join(str(error).split())[:300])
