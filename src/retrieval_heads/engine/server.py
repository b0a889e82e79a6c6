"""The engine process: owns the one vLLM engine of a run, or its replicas, and answers every client of it.

Started by `retrieval_heads.engine.client.EngineProcess`. Its first line of standard input says what to load; when
standard input ends, the launcher is gone and so is this process with everything it started. The main thread steps
the engine; a thread for each client waits for results. Everything submitted is in flight at once, in order.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from retrieval_heads.engine.messages import OPENING, Message, receive, send
from retrieval_heads.engine.watchdog import Pulse, write_stacks_on_signal
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.redaction import keep_secret, without_secrets

_OPENING_SECONDS = 120.0
"""How long a client may take to show the key: on a busy machine one that has connected may have to wait."""


@dataclass
class Job:
    """Something asked of the engine, and its result once there is one."""

    payload: str
    """What was asked, as canonical JSON: the same key with another payload is a mistake."""
    ask: Message
    result: Message | None = None


@dataclass
class Done:
    """What the engine has done. Written by the thread that steps it; prompts are those of cells that were asked."""

    steps: int = 0
    step_seconds: float = 0.0
    """In the engine's steps."""
    feed_gap_seconds: float = 0.0
    """Outside of them while there was work: building prompts, handling results."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of those, what the prefix cache gave."""
    reusable_tokens: int = 0
    """What a cache that holds everything would have given, the cells asked in the same order."""

    @classmethod
    def sum(cls, each: Iterable[Done]) -> Done:
        """Of several engines."""
        each = list(each)
        return cls(**{one.name: sum(getattr(done, one.name) for done in each) for one in fields(cls)})

    def count_step(self, seconds: float, gap: float) -> None:
        """One more step, and the gap before it."""
        self.steps += 1
        self.step_seconds += seconds
        self.feed_gap_seconds += gap

    def count_prompt(self, tokens: int, cached: int, reusable: int) -> None:
        """One more prompt was answered."""
        self.prompt_tokens += tokens
        self.cached_tokens += cached
        self.reusable_tokens += reusable


@dataclass
class Server:
    """Clients' side of the engine process: takes jobs in, gives results out.

    Messages, by their `do`:

    - `ready`: replies when the model is loaded, with `info`, or with `error`.
    - `submit`: `question` and `cells`, each with a `key`; known keys are left as they are.
    - `result`: waits for the `result` of a `key`.
    - `finished`: waits for results of more cells than `after`; replies with those beyond.
    - `ask`: `prompt`, `chat`, `sampling`; waits for the `answer`.
    - `counters`: how much was done.
    """

    key: str
    jobs: dict[str, Job] = field(default_factory=dict)
    waiting: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    answered: list[str] = field(default_factory=list)
    """Keys of the cells that have a result, as they came."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    info: Message | None = None
    failure: str | None = None
    done: Done = field(default_factory=Done)

    def listen(self, path: str) -> None:
        """Accept clients, each in a thread of its own."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)  # in a folder that nobody else can enter
        Path(path).chmod(0o600)
        listener.listen(128)
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def started(self, info: Message) -> None:
        """The model is loaded."""
        with self.changed:
            self.info = info
            self.changed.notify_all()

    def failed(self, reason: str) -> None:
        """The engine can do no more: everything that waits, and everything yet to come, is told why."""
        with self.changed:
            self.failure = without_secrets(reason)
            self.changed.notify_all()

    def finish(self, key: str, result: Message) -> None:
        """A job's result; whoever waits for it gets it."""
        if "reason" in result:
            result = {**result, "reason": without_secrets(result["reason"])}
        with self.changed:
            self.jobs[key].result = result
            if self.jobs[key].ask["do"] == "cell":
                self.answered.append(key)
            self.changed.notify_all()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(_OPENING_SECONDS)
                opening = receive(connection, OPENING)
                if opening is None or not secrets.compare_digest(str(opening.get("key")).encode(), self.key.encode()):
                    return
                connection.settimeout(None)
                while (message := receive(connection)) is not None:
                    send(connection, self._reply(message))
            except OSError:
                return  # a client that left; what it asked for stays readable

    def _reply(self, message: Message) -> Message:
        actions: Mapping[str, Callable[[Message], Message]] = {
            "ready": self._ready,
            "submit": self._submit,
            "result": self._result,
            "finished": self._finished,
            "ask": self._ask,
            "counters": self._counters,
        }
        action = actions.get(str(message.get("do")))
        if action is None:
            return {"error": f"the engine cannot do {message.get('do')!r}"}
        try:
            return action(message)
        except (
            Exception
        ) as error:  # of this question alone: its client would take a closed connection for a dead engine
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    def _ready(self, _: Message) -> Message:
        with self.changed:
            self.changed.wait_for(lambda: self.info is not None or self.failure is not None)
            return {"error": self.failure} if self.failure else {"info": self.info}

    def _submit(self, message: Message) -> Message:
        asked = {"do": "cell", "question": message["question"]}
        with self.changed:
            for cell in message["cells"]:
                job = {**asked, "cell": cell}
                payload = json.dumps(job, sort_keys=True)
                known = self.jobs.get(cell["key"])
                if known is None:
                    self._take_in(cell["key"], payload, job)
                elif known.payload != payload:
                    return {"error": f"cell {cell['key']} was submitted before with other contents"}
        return {}

    def _result(self, message: Message) -> Message:
        if message["key"] not in self.jobs:
            return {"error": f"cell {message['key']} was never submitted"}
        result = self._wait(message["key"])
        return self._fatal() if result is None else {"result": result}

    def _finished(self, message: Message) -> Message:
        after = message["after"]
        with self.changed:
            self.changed.wait_for(lambda: len(self.answered) > after or self.failure is not None)
            results = [[key, self.jobs[key].result] for key in self.answered[after:]]
        return {"results": results, "done": asdict(self.done)} if results else self._fatal()

    def _ask(self, message: Message) -> Message:
        with self.changed:
            key = f"ask {len(self.jobs)}"
            self._take_in(key, "", message)
        result = self._wait(key)
        if result is None:
            return self._fatal()
        return {"error": result["reason"]} if "reason" in result else {"answer": result["answer"]}

    def _counters(self, _: Message) -> Message:
        with self.changed:
            finished = sum(job.result is not None for job in self.jobs.values())
            return {
                "submitted": len(self.jobs),
                "finished": finished,
                "process": os.getpid(),
                **asdict(self.done),
            }

    def _fatal(self) -> Message:
        return {"error": self.failure, "is_fatal": True}

    def _take_in(self, key: str, payload: str, ask: Message) -> None:
        self.jobs[key] = Job(payload, ask)
        self.waiting.put(key)

    def _wait(self, key: str) -> Message | None:
        job = self.jobs[key]
        with self.changed:
            self.changed.wait_for(lambda: job.result is not None or self.failure is not None)
            return job.result


def main() -> None:
    """Serve until standard input ends."""
    write_stacks_on_signal()
    hello = json.loads(sys.stdin.buffer.readline())
    keep_secret(hello)
    pulse = Pulse(Path(hello["pulse"]))
    _stay_at(hello.get("place") or {})
    if hello.get("offline"):  # else each library asks for each file, again and again
        os.environ["HF_HUB_OFFLINE"] = "1"
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    server = Server(hello["key"])
    server.listen(hello["socket"])
    try:
        run = _load(server, hello, pulse)
        run()
    except RetrievalHeadsError as error:
        server.failed(str(error))
    except BaseException as error:
        traceback.print_exc()
        from retrieval_heads.engine.vllm import plain_reason

        server.failed(f"{type(error).__name__}: {plain_reason(error)}")
    pulse.rest()  # clients read why; the launcher ends this process


def _stay_at(place: Message) -> None:
    """Use only the devices or cores of a replica's place; before anything is loaded that looks for them."""
    os.environ.update(place.get("environment", {}))
    if place.get("cores"):
        os.sched_setaffinity(0, place["cores"])


def _load(server: Server, hello: Message, pulse: Pulse) -> Callable[[], None]:
    if hello.get("replicas", 1) != 1:
        from retrieval_heads.engine.replicas import Router, places

        found = places(hello["replicas"], hello["model"])
        if len(found) > 1:
            # Each replica is watched by itself. What this process waits for is theirs.
            threading.Thread(target=pulse.rest, daemon=True).start()
            return Router.launched(server, hello, found).run

    from retrieval_heads import identity
    from retrieval_heads.engine.cells import CellBuilder
    from retrieval_heads.engine.loop import Loop
    from retrieval_heads.engine.stored import complete_answers
    from retrieval_heads.engine.vllm import Engine
    from retrieval_heads.models import locate_model

    model = dict(hello["model"])
    name, template = model.pop("model"), model.pop("chat_template", None)
    kwargs = model.pop("chat_template_kwargs", None)
    location, environment = locate_model(name), dict(os.environ)  # before vLLM sets variables of its own
    # Beside the engine, which reads the same files.
    files = ThreadPoolExecutor(1).submit(identity.weights_of, location)
    engine = Engine(location, model, traced=hello["traced"])
    loaded = dict(engine.info.get("loaded", {}))
    revision = loaded.pop("revision", engine.info["model_revision"] or None)
    given = identity.model_identity(name, files.result(), model, loaded, revision)
    runs_on = identity.engine_identity(
        model, environment, engine=engine.info["engine"], device=engine.info["device"], traced=hello["traced"]
    )
    identities = identity.Identities.of(given, runs_on, hello.get("run", ""))
    builder = CellBuilder(
        engine.tokenizer,
        {"chat_template": template, "chat_template_kwargs": kwargs},
        identities.answered_by,
        engine.max_model_len,
    )
    began = time.perf_counter()
    builder.tokenize(hello.get("haystacks", ()))
    took = {**engine.start_seconds, "haystacks": time.perf_counter() - began}
    # Read before anybody is told that the engine is ready, and may write there.
    earlier = complete_answers(Path(hello["earlier"])) if hello.get("earlier") else {}
    start_seconds = {part: round(seconds, 3) for part, seconds in took.items()}
    fault = builder.start_token_fault()
    facts: Message = {"start_seconds": start_seconds, "identities": identities.to_json()}
    if fault:
        facts["warnings"] = [fault]
    pulse.beat()
    server.started({"model": name, **engine.info, **facts})
    return Loop(server, engine, builder, earlier, beat=pulse.beat).run


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
