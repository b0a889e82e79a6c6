"""One engine of several: what the router in front knows of it, and how it asks it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from retrieval_heads.engine.client import EngineClient, EngineProcess
from retrieval_heads.engine.jobs import Done, Run
from retrieval_heads.engine.messages import Hello
from retrieval_heads.errors import EngineError
from retrieval_heads.runs.folder import Facts


class Replica:
    """One engine of several, wherever it runs.

    Args:
        name: For users, such as `replica 1 of 2`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_lost = False
        """Whether its node is gone; nothing that it still says is heard."""
        self.askers: dict[str, EngineClient] = {}
        """By run, what its cells are submitted through."""
        self.outstanding: dict[str, int] = {}
        """Tokens of the jobs that it was given and has not answered, by their name."""
        self.done: dict[str, Done] = {}
        """By run."""
        self.cached: dict[str, int] = {}
        """By prefix, how far it has read it or will have."""
        self.measured: set[str] = set()
        """Hashes of the haystacks whose means it knows, which masks of mode `mean` put in place of heads."""

    def wait_ready(self) -> Facts:
        """Wait until its model is loaded; what it says of itself.

        Raises:
            EngineError: It was not, with its last words.
        """
        raise NotImplementedError

    def client(self, run: str) -> EngineClient:
        """What asks it for a run."""
        raise NotImplementedError

    def last_words(self, error: EngineError) -> str:
        """How it ended, as the second half of a sentence, and the last lines of its log."""
        raise NotImplementedError

    def successor(self) -> Replica | None:
        """What takes its place, now that it is lost: one that is being made; `None` where none can be."""
        return None

    @property
    def load(self) -> int:
        """Tokens that it still has to compute, about."""
        return sum(self.outstanding.values())

    def take_up(self, run: Run) -> None:
        """Begin a run there, as it was begun here.

        Raises:
            EngineDied: The replica is gone.
        """
        self.askers[run.name] = asker = self.client(run.name)
        self.done[run.name] = Done()
        self.begin(asker, run)

    def begin(self, asker: EngineClient, run: Run) -> None:
        """Begin a run through what asks for it."""
        asker.begin(run.earlier_file)

    def drop(self, run: Run) -> None:
        """End a run there."""
        for job in run.jobs.values():
            self.outstanding.pop(job.name, None)
        self.done.pop(run.name, None)
        if (asker := self.askers.pop(run.name, None)) is not None:
            asker.close()


class ReplicaProcess(Replica):
    """One of this host.

    Args:
        within: The folder of the engine process that launches it.
        name: See `Replica`.
    """

    def __init__(self, within: Path, name: str) -> None:
        super().__init__(name)
        self._process = EngineProcess(within)
        self._process.name = name

    def launch(self, hello: Hello, log: Path) -> None:
        """Start it; returns at once."""
        self._process.launch(hello, log)

    def wait_ready(self) -> Facts:
        """Wait until its model is loaded."""
        return self._process.wait_ready()

    def client(self, run: str) -> EngineClient:
        """What asks it for a run."""
        return EngineClient(replace(self._process.address, run=run))

    def last_words(self, error: EngineError) -> str:
        """How it ended."""
        return f"{self._process.obituary(patience=2) or f'failed: {error}'}{self._process.log_tail()}"


def log_of(hello: Hello, number: int) -> Path:
    """The log of a replica, beside that of the process which launches it; empty, unless a run is gone on with."""
    log = Path(hello.log)
    own = log.with_stem(f"{log.stem}-{number}")
    if not hello.is_resumed:
        own.write_bytes(b"")  # an earlier run's, in a folder that is used again
    return own


def wait_ready(replicas: Sequence[Replica]) -> list[Facts]:
    """Wait until all are ready; what each says of itself.

    Raises:
        EngineError: One did not start; the first is told at once.
    """
    pool = ThreadPoolExecutor(len(replicas))
    ready = [pool.submit(replica.wait_ready) for replica in replicas]
    for one in as_completed(ready):
        one.result()
    return [one.result() for one in ready]
