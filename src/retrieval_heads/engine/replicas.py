"""Several engines behind one engine process, which loads none itself: it hands jobs on, and their results back.

Each replica is an engine process like any other, on GPUs or cores of its own: of this host (`ReplicaProcess`), or of a
node of a Ray cluster (`retrieval_heads.engine.ray_replicas`). To whoever asks, nothing differs from one engine. Which
replica asks a cell is `retrieval_heads.engine.routing`'s to say. The heads that a detect suite found are handed over
with the cells that mask them, so that any replica may ask these.
"""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from retrieval_heads.engine.client import EngineDied, EngineLost
from retrieval_heads.engine.jobs import CellQuestion, Done, FreeQuestion, Job, Run
from retrieval_heads.engine.masks import Masks
from retrieval_heads.engine.messages import Devices, Hello
from retrieval_heads.engine.replica import Replica, ReplicaProcess, log_of, wait_ready
from retrieval_heads.engine.results import Answered, Result, Unanswered
from retrieval_heads.engine.routing import ANSWER, Asked, share_out
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError, RetrievalHeadsError
from retrieval_heads.plain import Fields
from retrieval_heads.runs.layers import Layer
from retrieval_heads.tasks.task import Question


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
    stranded: list[str] = field(default_factory=list)
    """Jobs that lost replicas left, while there is none to ask them."""
    awaited: int = 0
    """Replicas that are to take the place of lost ones and are not ready yet."""
    routing: threading.RLock = field(default_factory=threading.RLock)

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
        folder, count = Path(hello.socket).parent, len(places)
        replicas = [ReplicaProcess(folder, f"replica {number} of {count}") for number in range(1, count + 1)]
        for number, (replica, place) in enumerate(zip(replicas, places, strict=True), start=1):
            replica.launch(replace(hello, replicas=1, place=place), log_of(hello, number))
        infos = wait_ready(replicas)
        devices = [f"{info['device']}, {place.name}" for info, place in zip(infos, places, strict=True)]
        gpus = [gpu for info in infos for gpu in info.get("gpus", ())]
        server.started({**infos[0], "replicas": count, "devices": devices, **({"gpus": gpus} if gpus else {})})
        return cls(server, replicas, infos[0])

    @property
    def alive(self) -> list[Replica]:
        """The replicas that are not lost."""
        return [replica for replica in self.replicas if not replica.is_lost]

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
        for replica in self.alive:
            if run.name not in replica.askers:
                try:
                    replica.take_up(run)
                except EngineError as error:
                    self._fail(replica, error)
                    continue
                threading.Thread(target=self._follow, args=[replica, run], daemon=True).start()

    def _follow(self, replica: Replica, run: Run) -> None:
        """Give out a replica's results for a run as they come."""
        client, known = replica.client(run.name), 0
        try:
            while True:
                results, done = client.finished(known)
                known += len(results)
                with self.routing:
                    if run.is_over or replica.is_lost:  # what a lost one was asked, others are asked
                        return
                    # Before any result: whoever has the last one may ask how much was done.
                    replica.done[run.name] = done
                    run.done = Done.sum(one.done[run.name] for one in self.replicas if run.name in one.done)
                    for key, result in results:
                        if isinstance(result, Answered) and result.mask is not None and result.mask.mode == "mean":
                            replica.measured.add(result.mask.reference)
                        self._finish(run.name_of(key), result)
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
        if not (replicas := self.alive):
            self.stranded += keys
            return
        cached = {cell.prefix: [one.cached.get(cell.prefix, 0) for one in replicas] for cell in asked}
        chosen = share_out(asked, [replica.load for replica in replicas], cached)
        mine: list[dict[str, CellQuestion]] = [{} for _ in replicas]
        for key, job, cell, number in zip(keys, jobs, asked, chosen, strict=True):
            mine[number][key] = job
            read = replicas[number]
            read.outstanding[key] = cell.work
            read.cached[cell.prefix] = max(read.cached.get(cell.prefix, 0), cell.insertion)
        for replica, given in zip(replicas, mine, strict=True):
            self._submit_to(replica, given)

    def _submit_to(self, replica: Replica, jobs: Mapping[str, CellQuestion]) -> None:
        # Cells that were submitted together share one question object.
        for _, group in groupby(jobs.items(), key=lambda job: (id(job[1].question), job[1].awaits)):
            if replica.is_lost:  # found out meanwhile, and all that it was given is asked elsewhere
                return
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
        return replace(question, ablate=self.masks.ranked(question.ablate))

    def _ask(self, key: str, ask: FreeQuestion) -> None:
        """Ask a free question from a thread of its own: there are no more of them than clients."""
        reference = ask.mask.reference if ask.mask else None
        alive = sorted(self.alive, key=lambda replica: (reference not in replica.measured, replica.load))
        if not alive:
            self.stranded.append(key)
            return
        alive[0].outstanding[key] = ANSWER
        threading.Thread(target=self._answer, args=[self.server.jobs[key], ask, alive[0]], daemon=True).start()

    def _answer(self, job: Job, ask: FreeQuestion, replica: Replica) -> None:
        client = replica.client(job.run.name)
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
            if not replica.is_lost:
                replica.outstanding.pop(job.name, None)
                self._finish(job.name, result)

    def _finish(self, name: str, result: Result) -> None:
        job = self.server.jobs.get(name)
        if job is not None and job.lost_replica and isinstance(result, Answered):
            result = replace(result, lost_replica=job.lost_replica)
        self.server.finish(name, result)

    def _fail(self, replica: Replica, error: EngineError) -> None:
        """What becomes of the jobs of a replica that is gone.

        One that is lost with its node has others asked what it was asked, or the one that takes its place where there
        are no others. Else it ends the run, as one engine would: what ended one engine may end them all.
        """
        with self.routing:
            if replica.is_lost or self.server.failure is not None:
                return  # the first is told
            replica.is_lost = isinstance(error, EngineLost)
            if not replica.is_lost:
                self.server.failed(f"{replica.name} {replica.last_words(error)}")
                return
            names, replica.outstanding = list(replica.outstanding), {}
            jobs = [job for name in names if (job := self.server.jobs.get(name)) and job.result is None]
            print(f"{replica.name} {error}; {len(jobs)} jobs of it are asked again", file=sys.stderr, flush=True)
            for job in jobs:
                job.lost_replica = f"{replica.name} {error}"
            self.stranded += [job.name for job in jobs]
            if (successor := replica.successor()) is not None:
                self.awaited += 1
                threading.Thread(target=self._await, args=[successor, str(error)], daemon=True).start()
            self._go_on(f"{replica.name} {error}")

    def _await(self, successor: Replica, lost: str) -> None:
        """Have another replica take the place of a lost one, if it comes."""
        why = ""
        try:
            successor.wait_ready()
        except EngineError as error:
            why = f"{successor.name} {lost}, and did not come back: {error}"
            print(why, file=sys.stderr, flush=True)
        with self.routing:
            self.awaited -= 1
            if not why:
                self.replicas = [*self.replicas, successor]
            self._go_on(why)

    def _go_on(self, why: str) -> None:
        """Ask what lost replicas left, once there is one to ask; where none will come, the run ends, and says why."""
        if self.alive:
            stranded, self.stranded = self.stranded, []
            self._route(stranded)
        elif not self.awaited:
            self.server.failed(why)
