"""Several engines behind one engine process, which loads none itself: it hands jobs on, and their results back.

Each replica is an engine process like any other, on GPUs or cores of its own. To whoever asks, nothing differs from
one engine. Which replica asks a cell is `retrieval_heads.engine.routing`'s to say. The heads that a detect suite found
are handed over with the cells that mask them, so that any replica may ask these.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path

from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.jobs import CellQuestion, Done, FreeQuestion, Job, Run
from retrieval_heads.engine.masks import Masks
from retrieval_heads.engine.messages import Devices, Hello
from retrieval_heads.engine.results import Answered, Result, Unanswered
from retrieval_heads.engine.routing import ANSWER, Asked, share_out
from retrieval_heads.engine.server import Server
from retrieval_heads.engine.start import gpus_each
from retrieval_heads.errors import ConfigError, EngineError, RetrievalHeadsError
from retrieval_heads.plain import Fields
from retrieval_heads.runs.layers import Layer
from retrieval_heads.tasks.task import Question


def places(replicas: int | str, model: Fields, gpus: Sequence[str] | None) -> list[Devices]:
    """Where the replicas of a model compute.

    Args:
        replicas: How many, or `auto`: as many as the visible GPUs hold, and one on a CPU.
        model: The `model` section of the settings; an engine takes `tensor_parallel_size` GPUs for each of its
            pipeline's stages.
        gpus: Those that can be seen; `None` where replicas share out processor cores.

    Raises:
        ConfigError: There are too few GPUs or cores.
    """
    if gpus is None:
        return _cpu_places(1 if replicas == "auto" else int(replicas))
    each = gpus_each(model)
    count = max(1, len(gpus) // each) if replicas == "auto" else int(replicas)
    if count > 1 and count * each > len(gpus):
        raise ConfigError(
            f"engine.replicas: {count} replicas of {_counted(each, 'GPU')} need {count * each}, "
            f"and {_counted(len(gpus), 'GPU')} can be seen"
        )
    taken = [",".join(gpus[number * each : (number + 1) * each]) for number in range(count)]
    return [Devices(f"GPU {ids}", {"CUDA_VISIBLE_DEVICES": ids}) for ids in taken]


def _cpu_places(count: int) -> list[Devices]:
    # Threads of one core, and cores of one socket, stay together: replicas would slow each other down.
    cores = sorted(os.sched_getaffinity(0), key=_where)
    if count > len(cores):
        raise ConfigError(
            f"engine.replicas: {count} replicas need a core each, and {_counted(len(cores), 'core')} can be used"
        )
    bounds = [number * len(cores) // count for number in range(count + 1)]
    shares = [sorted(cores[start:end]) for start, end in pairwise(bounds)]
    return [Devices(f"core {','.join(map(str, share))}", cores=tuple(share)) for share in shares]


def _where(core: int) -> tuple[int, ...]:
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    files = [folder / name for name in ("physical_package_id", "core_id")]
    return (*(int(file.read_text()) for file in files if file.exists()), core)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


class Replica(EngineProcess):
    """One engine of several.

    Args:
        within: The folder of the engine process that launches it.
        name: For users, such as `replica 1 of 2`.
    """

    def __init__(self, within: Path, name: str) -> None:
        super().__init__(within)
        self.name = name
        self.askers: dict[str, EngineClient] = {}
        """By run, what its cells are submitted through."""
        self.outstanding: dict[str, int] = {}
        """Tokens of the jobs that it was given and has not answered, by their name."""
        self.done: dict[str, Done] = {}
        """By run."""

    @property
    def load(self) -> int:
        """Tokens that it still has to compute, about."""
        return sum(self.outstanding.values())

    def take_up(self, run: Run) -> None:
        """Begin a run there, as it was begun here.

        Raises:
            EngineDied: The replica is gone.
        """
        self.askers[run.name] = asker = EngineClient(replace(self.address, run=run.name))
        self.done[run.name] = Done()
        asker.begin(run.earlier_file)

    def drop(self, run: Run) -> None:
        """End a run there."""
        for job in run.jobs.values():
            self.outstanding.pop(job.name, None)
        self.done.pop(run.name, None)
        if (asker := self.askers.pop(run.name, None)) is not None:
            asker.close()


@dataclass
class Router:
    """Hands the server's jobs on to replicas.

    Args:
        server: Where jobs come from and results go.
        replicas: Engines that are ready.
        info: What the first of them says of itself; they are all alike.
    """

    server: Server
    replicas: Sequence[Replica]
    info: Fields
    held: dict[str, list[str]] = field(default_factory=dict)
    """Masked cells by run and suite, while what they mask is not known."""
    cached: dict[str, list[int]] = field(default_factory=dict)
    """By prefix, how far each replica has read it or will have."""
    measured: dict[str, Replica] = field(default_factory=dict)
    """By haystack's hash, who knows its means, which masks of mode `mean` put in place of heads."""
    routing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.masks = Masks(self.server, [Layer(**layer) for layer in self.info.get("layers", ())])

    @classmethod
    def launched(cls, server: Server, hello: Hello, places: Sequence[Devices]) -> Router:
        """Launch a replica at each place, and wait until all are ready.

        Args:
            server: Is told of them.
            hello: What this process was told to load.
            places: At least one.

        Raises:
            EngineError: One did not start; the others end with this process.
        """
        log, folder = Path(hello.log), Path(hello.socket).parent
        count = len(places)
        replicas = [Replica(folder, f"replica {number} of {count}") for number in range(1, count + 1)]
        for number, (replica, place) in enumerate(zip(replicas, places, strict=True), start=1):
            own = log.with_stem(f"{log.stem}-{number}")
            if not hello.is_resumed:
                own.write_bytes(b"")  # an earlier run's, in a folder that is used again
            replica.launch(replace(hello, replicas=1, place=place), own)
        pool = ThreadPoolExecutor(count)
        ready = [pool.submit(replica.wait_ready) for replica in replicas]
        for one in as_completed(ready):
            one.result()  # the first that fails is told at once
        infos = [one.result() for one in ready]
        devices = [f"{info['device']}, {place.name}" for info, place in zip(infos, places, strict=True)]
        gpus = [gpu for info in infos for gpu in info.get("gpus", ())]
        server.started({**infos[0], "replicas": count, "devices": devices, **({"gpus": gpus} if gpus else {})})
        return cls(server, replicas, infos[0])

    def run(self) -> None:
        """Hand on for ever."""
        while True:
            names = self._taken()
            with self.routing:
                for run in self.server.dropped():
                    self._drop(run)
                self._route(names)

    def _taken(self) -> list[str]:
        """Everything that waits, once there is something: a submission is taken in as a whole."""
        names = []
        with suppress(queue.Empty):
            names.append(self.server.waiting.get())
            with self.server.changed:
                while True:
                    names.append(self.server.waiting.get(block=False))
        return names

    def _drop(self, run: Run) -> None:
        """Forget what a run asked that is gone, here and at every replica."""
        for replica in self.replicas:
            replica.drop(run)
        names = {job.name for job in run.jobs.values()}
        self.held = {suite: held for suite, held in self.held.items() if held[0] not in names}
        self.masks.forget(names)

    def _begin(self, run: Run) -> None:
        """Begin a run at every replica, where that was not done, and follow it there."""
        for replica in self.replicas:
            if run.name not in replica.askers:
                try:
                    replica.take_up(run)
                except EngineError as error:
                    self._fail(replica, error)
                    continue
                threading.Thread(target=self._follow, args=[replica, run], daemon=True).start()

    def _follow(self, replica: Replica, run: Run) -> None:
        """Give out a replica's results for a run as they come."""
        client, known = EngineClient(replace(replica.address, run=run.name)), 0
        try:
            while True:
                results, done = client.finished(known)
                known += len(results)
                with self.routing:  # before any result: whoever has the last one may ask how much was done
                    if run.is_over:
                        return
                    replica.done[run.name] = done
                    run.done = Done.sum(one.done[run.name] for one in self.replicas)
                for key, result in results:
                    if isinstance(result, Answered) and result.mask is not None and result.mask.mode == "mean":
                        self.measured.setdefault(result.mask.reference, replica)
                    self.server.finish(run.name_of(key), result)
                with self.routing:
                    for key, _ in results:
                        replica.outstanding.pop(run.name_of(key), None)
                    self._release()
        except EngineError as error:
            if not run.is_over:
                self._fail(replica, error)
        except Exception as error:  # a mistake of ours: without this thread nobody would ever be answered
            traceback.print_exc()
            self.server.failed(f"{type(error).__name__}: {error}")
        finally:
            client.close()

    def _route(self, keys: Iterable[str]) -> None:
        cells = []
        for key in keys:
            job = self.server.jobs.get(key)
            if job is None:
                continue  # its run is gone
            ask = job.ask
            self._begin(job.run)
            try:
                if isinstance(ask, FreeQuestion):
                    self._ask(key, ask)
                elif ask.awaits and not self._can_mask(ask.question):
                    self.held.setdefault(job.run.name_of(ask.question.suite), []).append(key)
                else:
                    cells.append(key)
            except EngineError as error:  # what it waits for will not come
                self.server.finish(key, Unanswered("error", str(error)))
        self._submit(cells)

    def _release(self) -> None:
        """Hand on the masked cells whose masks are known by now."""
        for suite, keys in list(self.held.items()):
            if self._can_mask(self._cell(keys[0]).question):
                self._submit(self.held.pop(suite))

    def _can_mask(self, question: Question) -> bool:
        return question.ablate is None or self.masks.are_known(question.ablate)

    def _cell(self, key: str) -> CellQuestion:
        ask = self.server.jobs[key].ask
        assert isinstance(ask, CellQuestion)
        return ask

    def _submit(self, keys: Sequence[str]) -> None:
        """Choose a replica for each cell, and submit to each replica its own, in their order."""
        jobs = [self._cell(key) for key in keys]
        whose = [self.server.jobs[key] for key in keys]
        limits = (0 if job.key in job.run.earlier else int(self.info["max_model_len"]) for job in whose)
        asked = [Asked.of(job.question, job.cell, limit) for job, limit in zip(jobs, limits, strict=True)]
        chosen = share_out(asked, [replica.load for replica in self.replicas], self.cached)
        mine: list[dict[str, CellQuestion]] = [{} for _ in self.replicas]
        for key, job, cell, number in zip(keys, jobs, asked, chosen, strict=True):
            mine[number][key] = job
            self.replicas[number].outstanding[key] = cell.work
            read = self.cached.setdefault(cell.prefix, [0] * len(self.replicas))
            read[number] = max(read[number], cell.insertion)
        for replica, given in zip(self.replicas, mine, strict=True):
            self._submit_to(replica, given)

    def _submit_to(self, replica: Replica, jobs: Mapping[str, CellQuestion]) -> None:
        # Cells that were submitted together share one question object.
        for _, group in groupby(jobs.items(), key=lambda job: (id(job[1].question), job[1].awaits)):
            these = dict(group)
            first = next(iter(these.values()))
            whose = {self.server.jobs[name].key: job.cell for name, job in these.items()}
            run = self.server.jobs[next(iter(these))].run
            try:
                question = self._with_heads(first.question) if first.awaits else first.question
                replica.askers[run.name].submit(question, whose)
            except EngineDied as error:
                self._fail(replica, error)
            except RetrievalHeadsError as error:  # no heads were found
                for key in these:
                    replica.outstanding.pop(key, None)
                    self.server.finish(key, Unanswered("error", str(error)))

    def _with_heads(self, question: Question) -> Question:
        """The question of cells whose heads another suite has found, with these in place of that suite."""
        assert question.ablate is not None
        heads = self.masks.found(question.ablate.awaits, question.ablate.by)
        return replace(question, ablate=replace(question.ablate, heads=heads, awaits=()))

    def _ask(self, key: str, ask: FreeQuestion) -> None:
        """Ask a free question from a thread of its own: there are no more of them than clients."""
        least = min(self.replicas, key=lambda replica: replica.load)
        replica = self.measured.get(ask.mask.reference, least) if ask.mask else least
        replica.outstanding[key] = ANSWER
        threading.Thread(target=self._answer, args=[self.server.jobs[key], ask, replica], daemon=True).start()

    def _answer(self, job: Job, ask: FreeQuestion, replica: Replica) -> None:
        client = EngineClient(replace(replica.address, run=job.run.name))
        try:
            result: Result = client.answer(ask)
        except EngineDied as error:
            if not job.run.is_over:
                self._fail(replica, error)
            return
        except EngineError as error:
            result = Unanswered("error", str(error))
        finally:
            client.close()
        with self.routing:
            replica.outstanding.pop(job.name, None)
        self.server.finish(job.name, result)

    def _fail(self, replica: Replica, error: EngineError) -> None:
        """One replica that is gone ends the run, as one engine would; the first is told."""
        if self.server.failure is None:
            ended = replica.obituary(patience=2)
            self.server.failed(f"{replica.name} {ended or f'failed: {error}'}{replica.log_tail()}")
