"""The engine process: owns the one engine of a run, or its replicas, and answers every client of it.

Started by `retrieval_heads.engine.client.EngineProcess`. Its first line of standard input says what to load; when
standard input ends, the launcher is gone and so is this process with everything it started. The main thread steps
the engine; a thread for each client waits for results. Everything submitted is in flight at once, in order.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from retrieval_heads.engine.backends.backend import Backend, find, resolve
from retrieval_heads.engine.messages import Devices, Hello, Message
from retrieval_heads.engine.phase import enter
from retrieval_heads.engine.server import Server
from retrieval_heads.engine.watchdog import Pulse, write_stacks_on_signal
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.redaction import is_secret_key, keep_secret
from retrieval_heads.suites.settings import DEFAULT_BACKEND


def main() -> None:
    """Serve until standard input ends."""
    write_stacks_on_signal()
    opening = json.loads(sys.stdin.buffer.readline())
    keep_secret(opening)
    hello = Hello.of_json(opening)
    pulse = Pulse(Path(hello.pulse))
    if hello.place is not None:
        _stay_at(hello.place)
    if hello.offline:  # else each library asks for each file, again and again
        os.environ["HF_HUB_OFFLINE"] = "1"
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    server = Server(hello.key, awaits_begin=hello.is_resumed)
    server.listen(hello.socket)
    backend = resolve(hello.backend) if hello.backend else find(DEFAULT_BACKEND)
    try:
        run = _load(server, backend, hello, pulse)
        run()
    except RetrievalHeadsError as error:
        server.failed(str(error))
    except BaseException as error:
        traceback.print_exc()
        server.failed(f"{type(error).__name__}: {backend.reason(error).removeprefix(f'{type(error).__name__}: ')}")
    pulse.rest()  # clients read why; the launcher ends this process


def _stay_at(place: Devices) -> None:
    """Use only the devices or cores of a replica's place; before anything is loaded that looks for them."""
    os.environ.update(place.environment)
    if place.cores:
        os.sched_setaffinity(0, place.cores)


def _load(server: Server, backend: type[Backend], hello: Hello, pulse: Pulse) -> Callable[[], None]:
    if hello.settings:
        from retrieval_heads.engine.in_turn import InTurn

        threading.Thread(target=pulse.rest, daemon=True).start()  # each engine is watched by itself
        return InTurn(server, hello).run
    if backend.capabilities.is_on_ray and hello.place is None:  # on its node each has a place
        from retrieval_heads.engine.ray_replicas import launched

        threading.Thread(target=pulse.rest, daemon=True).start()  # each engine is watched by itself
        return launched(server, hello).run
    if hello.replicas != 1:
        from retrieval_heads.engine.places import places
        from retrieval_heads.engine.replicas import Router

        found = places(hello.replicas, hello.model, backend.gpus())
        if len(found) > 1:
            enter(f"loading {len(found)} replicas")
            # Each replica is watched by itself. What this process waits for is theirs.
            threading.Thread(target=pulse.rest, daemon=True).start()
            return Router.launched(server, hello, found).run

    from retrieval_heads.engine.loop import Loop
    from retrieval_heads.engine.places import gpus_each
    from retrieval_heads.runs import identity
    from retrieval_heads.tasks.builder import CellBuilder

    model = dict(hello.model)
    name, template = model.pop("model"), model.pop("chat_template", None)
    kwargs = model.pop("chat_template_kwargs", None)
    location, environment = backend.locate(name), dict(os.environ)  # before vLLM sets variables of its own
    arguments = model if hello.sleep_after is None else backend.kept(model)
    is_elsewhere = backend.capabilities.is_elsewhere
    # Beside the engine, which reads the same files.
    files = ThreadPoolExecutor(1).submit(lambda: None if is_elsewhere else identity.weights_of(location))
    engine = backend(location, arguments, hello.options, traced=hello.traced)
    loaded = dict(engine.info.loaded)
    revision = loaded.pop("revision", engine.info.model_revision or None)
    given = identity.model_identity(name, files.result(), model, loaded, revision)
    matters = {key: value for key, value in hello.options.items() if key not in backend.indifferent}
    said = {**engine.info.chosen, **model, **{key: value for key, value in matters.items() if not is_secret_key(key)}}
    runs_on = identity.engine_identity(
        said,
        environment,
        engine=engine.info.engine,
        device=engine.info.device,
        traced=hello.traced,
        is_elsewhere=is_elsewhere,
    )
    identities = identity.Identities.of(given, runs_on, hello.run)
    builder = CellBuilder(
        engine.tokenizer,
        {"chat_template": template, "chat_template_kwargs": kwargs},
        identities.answered_by,
        engine.info.max_model_len,
        takes_text=(engine.info.takes or backend.capabilities.takes) == "text",
    )
    began = time.perf_counter()
    enter("reading the haystacks")
    builder.tokenize(hello.haystacks)
    took = {**engine.info.start_seconds, "haystacks": time.perf_counter() - began}
    start_seconds = {part: round(seconds, 3) for part, seconds in took.items()}
    warnings = [*engine.info.warnings, *filter(None, [builder.start_token_fault()])]
    facts: Message = {"start_seconds": start_seconds, "identities": identities.to_json()}
    if warnings:
        facts["warnings"] = warnings
    if hello.sleep_after is not None and (gpus := backend.gpus()):
        facts["gpus"] = gpus[: gpus_each(hello.model)]
    pulse.beat()
    server.started({"model": name, **engine.info.to_json(), **facts})
    return Loop(server, engine, builder, beat=pulse.beat, sleep_after=hello.sleep_after).run


def _end_with_launcher() -> None:
    """Wait for the end of standard input, then end this process and everything it started.

    Not by `sys.stdin`: this thread would hold its lock, and a process that vLLM forks closes `sys.stdin` first of all
    and would wait for that lock for ever.
    """
    while os.read(0, 1 << 16):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a process that vLLM has spawned
    write_stacks_on_signal()
