"""Warm engines: processes that stay in the background, how they are found, started, joined and stopped.

Each lies in a private folder of its own (`private_folder`), with a file that says how it was started and how it is
reached; the process that keeps it there is `retrieval_heads.engine.keeper`. Another user finds none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from retrieval_heads.engine.backends.backend import find
from retrieval_heads.engine.client import Address, EngineClient, EngineDied, EngineProcess, join, leave, said_now
from retrieval_heads.engine.jobs import Use
from retrieval_heads.engine.log import tail
from retrieval_heads.engine.messages import Hello, Message
from retrieval_heads.engine.places import gpus_each
from retrieval_heads.engine.private_folder import has_maker, is_own, kept_folders
from retrieval_heads.engine.start import StartedWith
from retrieval_heads.errors import EngineError
from retrieval_heads.files import write_whole
from retrieval_heads.models import cache_folder
from retrieval_heads.plain import Fields, Plain
from retrieval_heads.runs.folder import Facts
from retrieval_heads.suites.settings import Engine

_RECORD = "warm.json"
_KEEPER = "retrieval_heads.engine.keeper"
_ENDING = 30.0  # seconds that a keeper gets to end its engine


@dataclass(frozen=True, slots=True)
class Order(Plain):
    """What a keeper is told on its standard input, one line of JSON.

    Args:
        hello: What its engine is to load.
        started: The same, as others compare it.
        log: Where what the engine prints goes.
        idle: Seconds without a run after which it ends.
        config: The settings file that it was started from.
        sets: What was laid over that, as `--rh-set` says it.
    """

    hello: Hello
    started: StartedWith
    log: str
    idle: float
    config: str | None = None
    sets: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, hello: Hello, started: StartedWith, section: Engine, log: Path, config: str | None, sets: Sequence[str]
    ) -> Order:
        """One as the `engine` section of the settings says; see above.

        Raises:
            EngineError: It names an endpoint.
        """
        if find(section.kind).capabilities.is_elsewhere:
            raise EngineError(f"engine.kind: {section.kind}: an endpoint is kept by its server; none is started here")
        hello = replace(hello, sleep_after=section.sleep)
        where = str(Path(config).absolute()) if config else None
        return cls(hello, started, str(log), section.idle, where, tuple(sets))


@dataclass(frozen=True, slots=True)
class Warm(Plain):
    """A warm engine, as its file tells it.

    Args:
        address: Where it listens.
        process: That of its keeper.
        model: As its settings name it.
        began: When it was ready, in seconds since 1970.
        started: What it was started with.
        log: What it prints.
        idle: Seconds without a run after which it ends.
        facts: What it says of itself: dtype, device, engine.
        gpus: Those that it holds, as `CUDA_VISIBLE_DEVICES` names them.
        gpu_share: How much of their memory.
    """

    address: Address
    process: int
    model: str
    began: float
    started: StartedWith
    log: str
    idle: float
    facts: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    gpu_share: float = 0.9

    @property
    def folder(self) -> Path:
        """Its private folder."""
        return Path(self.address.path).parent

    @property
    def name(self) -> str:
        """For users."""
        return f"the warm engine of {self.model} (process {self.process})"

    def save(self) -> None:
        """Let others find it."""
        write_whole(self.folder / _RECORD, json.dumps(self.to_json()).encode(), is_private=True)

    def use(self) -> Use | None:
        """Who uses it; `None` where it is just going."""
        return said_now(self.address, EngineClient.use)

    def last_words(self) -> str:
        """The last lines of its log, below a line that names it."""
        return tail(Path(self.log))

    def stop(self) -> bool:
        """End it, whoever uses it; whether it is gone."""
        give_up = time.monotonic() + _ENDING
        with contextlib.suppress(ProcessLookupError):
            if has_maker(self.folder):  # else the number may be another's
                os.kill(self.process, signal.SIGTERM)
        while has_maker(self.folder):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        return True


def warm_engines() -> list[Warm]:
    """Those of this user that live; of another version of this package as well, where that can be read."""
    found = []
    for folder in kept_folders():
        if is_own(folder):
            with contextlib.suppress(OSError, ValueError, ValidationError):  # it is being made, or is another version's
                found.append(Warm.of_json(json.loads((folder / _RECORD).read_text(encoding="utf-8"))))
    return found


def others() -> list[str]:
    """The users who keep an engine here that only they can use."""
    owners = {folder.stat().st_uid for folder in kept_folders() if not is_own(folder)}
    return sorted(map(_user, owners))


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"number {number}"


def check_gpus(engines: list[Warm], model: Fields, section: Engine) -> None:
    """See that no warm engine holds the memory of a GPU that another would be loaded on.

    Args:
        engines: The warm ones.
        model: The `model` section of the other's settings.
        section: Its `engine` section; a backend of another kind is not known to need one.

    Raises:
        EngineError: One does.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = None if section.replicas == "auto" else gpus_each(model) * section.replicas
    share = float(model.get("gpu_memory_utilization") or 0.9)
    for engine in engines:
        seen = (
            said.split(",") if said else sorted({*engine.gpus, *map(str, range(64))}, key=lambda gpu: (len(gpu), gpu))
        )
        wanted = [gpu.strip() for gpu in seen][:count]
        held = [gpu for gpu in engine.gpus if gpu in wanted]
        if not held or engine.started.said["engine.kind"] != section.kind:
            continue
        if engine.gpu_share + share <= 1 or ((use := engine.use()) and use.asleep):
            continue
        raise EngineError(
            f"GPU {', '.join(held)} is held by {engine.name}, {engine.gpu_share:.0%} of its memory; "
            "`retrieval-heads engine stop` gives it back"
        )


@contextlib.contextmanager
def starting(say: Callable[[str], object]) -> Iterator[None]:
    """Only one process of this user starts a warm engine at a time: two alike would hold the memory of both.

    Args:
        say: Tells the user that another's start is waited for.

    Raises:
        EngineError: The user's cache cannot be written.
    """
    path = cache_folder() / "warm.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    except OSError as error:
        raise EngineError(f"{path}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another warm engine is being started; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start(order: Order) -> Warm:
    """Start a warm engine, and wait until its model is loaded.

    Raises:
        EngineError: It did not start, with the last lines of its log.
    """
    try:
        keeper = subprocess.Popen(
            [sys.executable, "-m", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # neither Ctrl-C nor the terminal's end is for it
        )
    except OSError as error:
        raise EngineError(f"the engine did not start: no process could be made ({error.strerror})") from None
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper.stdin, keeper.stdout:  # when the first is closed before it is ready, it ends
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(json.dumps(order.to_json()).encode() + b"\n")
            keeper.stdin.flush()
        line = keeper.stdout.readline()
    told: Message = json.loads(line) if line else {"error": "the engine did not start: its keeper ended"}
    if "error" in told:
        keeper.wait()
        raise EngineError(told["error"])
    keeper.returncode = 0  # it is nobody's child any more
    return Warm.of_json(told["warm"])


def new_log() -> Path:
    """Where a new warm engine prints; the logs of those of before are kept, the newest few."""
    folder = cache_folder() / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime)[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.log"


_KEPT_LOGS = 8


class SessionEngine(EngineProcess):
    """A session's engine: one of its own, which ends with it, or a warm one that it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.warm: Warm | None = None
        """The one that was joined."""

    @property
    def is_launched(self) -> bool:
        """Whether one was started, or joined."""
        return self.warm is not None or super().is_launched

    def join(self, warm: Warm, earlier: str | None) -> Facts | None:
        """Have every process of the session ask a warm engine, and begin its run there.

        Args:
            warm: One that was started with what the session needs.
            earlier: Results of an earlier run whose answers are used again.

        Returns:
            What the engine says of itself; `None` where it is going, and takes no more runs.

        Raises:
            EngineError: The results cannot be read.
        """
        self.warm = warm
        join(self.address, replace(warm.address, run=secrets.token_hex(4)))
        try:
            self.begin(earlier)
            return self.wait_ready()
        except EngineDied:
            self.warm = None
            leave(self.address)
            return None

    def wait_ready(self) -> Facts:
        """Wait until the model is loaded, which that of a warm engine is."""
        if self.warm is None:
            return super().wait_ready()
        client = EngineClient(self.address)
        try:
            return client.wait_ready()
        finally:
            client.close()

    def obituary(self, *, patience: float = 0) -> str | None:
        """How it ended; `None` while it runs."""
        if self.warm is None:
            return super().obituary(patience=patience)
        give_up = time.monotonic() + patience
        while has_maker(self.warm.folder):
            if time.monotonic() > give_up:
                return None
            time.sleep(0.05)
        return "was warm, and is gone"

    def log_tail(self) -> str:
        """The log's last lines, below a line that names the log."""
        return super().log_tail() if self.warm is None else self.warm.last_words()
