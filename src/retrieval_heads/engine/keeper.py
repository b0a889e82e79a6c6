"""The process that keeps a warm engine: launches it, watches over it, and ends it when its time is up.

Started by `retrieval_heads.engine.warm.start`, which tells it on standard input what to keep, and hears on standard
output when that is ready, or why not. It then belongs to nobody: it ends by itself once no run has come for a while,
once a file that its engine was started from has changed, or at SIGTERM. However it ends, its engine does too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.private_folder import KEPT
from retrieval_heads.engine.start import StartedWith
from retrieval_heads.engine.warm import Order, Warm
from retrieval_heads.errors import EngineError, RetrievalHeadsError
from retrieval_heads.redaction import keep_secret
from retrieval_heads.runs.folder import Facts
from retrieval_heads.suites.reading import overlay, overrides, read_settings, resolve

_LOOK = 1.0  # seconds between two looks at most
_HEARD = 0.3  # seconds in which clients read why their engine was ended


class Stopped(Exception):
    """Somebody asked it to end."""


def main() -> None:
    """Keep an engine until its time is up."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    opening = json.loads(sys.stdin.buffer.readline())
    keep_secret(opening)
    Keeper(Order.of_json(opening)).run()


def _stop(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


class Keeper:
    """Keeps one engine.

    Args:
        order: What it was told.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._engine = EngineProcess(prefix=KEPT)
        self._is_told = threading.Event()

    def run(self) -> None:
        """Start the engine, tell whoever asked for it, and keep it."""
        threading.Thread(target=self._end_with_starter, daemon=True).start()
        try:
            self._engine.launch(self._order.hello, Path(self._order.log))
            warm = self._warm(self._engine.wait_ready())
            warm.save()
            self._tell({"warm": warm.to_json()})
            why = self._keep(warm)
        except EngineError as error:
            self._tell({"error": str(error)})
            why = ""
        except Stopped:
            why = "was ended by `retrieval-heads engine stop`"
        try:
            if why:
                self._note(why)
                self._engine.dismiss(why)  # runs that use it hear why
                time.sleep(_HEARD)
        finally:
            self._engine.end()

    def _warm(self, info: Facts) -> Warm:
        hello = self._order.hello
        return Warm(
            address=self._engine.address,
            process=os.getpid(),
            model=str(hello.model["model"]),
            began=time.time(),
            # A file that changed while it was loading is found changed: which of the two was read is not known.
            started=StartedWith(
                self._order.started.said, {**self._order.started.now().files, **self._order.started.files}
            ),
            log=self._order.log,
            idle=self._order.idle,
            facts={name: str(info[name]) for name in ("dtype", "device", "engine") if name in info},
            gpus=tuple(info.get("gpus", ())),
            gpu_share=float(hello.model.get("gpu_memory_utilization") or 0.9),
        )

    def _keep(self, warm: Warm) -> str:
        """Watch over it until it is to end; why, as the second half of a sentence."""
        client = EngineClient(self._engine.address)
        config = _Config.of(self._order)
        changed = ""
        while True:
            time.sleep(min(_LOOK, self._order.idle / 4))
            if (ended := self._engine.obituary()) is not None:
                return ended
            try:
                use = client.use()
                if use.failure:
                    return f"failed: {use.failure}"
                changed = changed or config.change() or next(iter(warm.started.differences(warm.started.now())), "")
                if changed:  # runs that began before end with the engine that they began with
                    client.retire(always=True)
                    if not use.runs:
                        return f"was ended: {changed}"
                elif use.idle_seconds >= self._order.idle and client.retire():
                    return f"was ended: no run for {self._order.idle:g} s"
            except EngineDied as error:
                return self._engine.obituary(patience=2) or f"failed: {error}"

    def _tell(self, message: dict[str, object]) -> None:
        """Answer whoever started this, once; from then on nothing is heard and nothing said."""
        self._is_told.set()
        with contextlib.suppress(OSError):
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.close(nothing)

    def _end_with_starter(self) -> None:
        """Until it is ready it is somebody's who waits for it."""
        while os.read(0, 1 << 16):
            pass
        if not self._is_told.is_set():
            self._engine.end()
            os._exit(1)

    def _note(self, why: str) -> None:
        with contextlib.suppress(OSError), Path(self._order.log).open("a", encoding="utf-8") as log:
            log.write(f"rh: the engine {why}\n")


class _Config:
    """The settings file that an engine was started from, as long as that says what it was started with.

    Args:
        order: The keeper's.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._path = Path(order.config or os.devnull)
        self._state = self._stat()

    @classmethod
    def of(cls, order: Order) -> _Config:
        """One that is watched; where suites say more than the file does, none is."""
        made = cls(order)
        if not made._fits():
            made._path = Path(os.devnull)
            made._state = made._stat()
        return made

    def change(self) -> str:
        """What the file says that ends the engine; empty where it says the same."""
        state = self._stat()
        if state == self._state:
            return ""
        self._state = state
        return "" if self._fits() else f"{self._path} asks for another engine now"

    def _stat(self) -> tuple[int, ...]:
        try:
            told = self._path.stat()
        except OSError:
            return ()
        return told.st_mtime_ns, told.st_size, told.st_ino

    def _fits(self) -> bool:
        try:
            said = read_settings(self._path) if self._order.config else {}
            settings = resolve(overlay(said, overrides(self._order.sets)), str(self._path))
            return self._order.started.still_fits(settings)
        except RetrievalHeadsError:
            return False


if __name__ == "__main__":
    main()
