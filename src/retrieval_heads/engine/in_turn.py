"""Several settings of the engine, one after the other, behind one engine process, which loads none itself.

To whoever asks, nothing differs from one engine: a job's suite tells its setting. An engine is launched once the one
before it has answered all that it was given and will be, so that each has the machine to itself. One that does not
start, or ends, costs its own cells; the others are asked all the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from queue import Empty

from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.jobs import CellQuestion, Done, FreeQuestion, Job, SettingState
from retrieval_heads.engine.messages import EngineSetting, Hello
from retrieval_heads.engine.results import Result, Unanswered
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError, RetrievalHeadsError

_LOOK = 1.0
"""Seconds between two looks for jobs, while a setting has none that are under way."""
_SOON = 0.05
"""The same while what a setting has answered is judged, which tells whether it is asked more."""


class _OneOfSeveral(EngineProcess):
    """The engine of one setting; in a process group of its own, so that its end is no other's."""

    def __init__(self, setting: str) -> None:
        super().__init__()
        self.name = f"the engine of {setting}"


@dataclass
class InTurn:
    """Answers a server's jobs setting by setting.

    Args:
        server: Where jobs come from and results go.
        hello: What this process was told; its `settings` in the order of their turns.
    """

    server: Server
    hello: Hello
    queued: dict[str, list[Job]] = field(init=False)
    """Jobs that were not handed to an engine, by setting."""

    def __post_init__(self) -> None:
        self.queued = {one.name: [] for one in self.hello.settings}
        self._setting_of = {suite: one.name for one in self.hello.settings for suite in one.suites}
        self._failed: dict[str, str] = {}

    def run(self) -> None:
        """Answer for ever; the first setting is loaded before anybody asks."""
        for one in self.hello.settings:  # clients submit once something is ready
            if self._answer(one):
                break
        else:
            self.server.failed("; ".join(self._failed.values()))
            return
        while True:
            self._take_in(patience=_LOOK)
            for one in self.hello.settings:
                if self.queued[one.name]:
                    self._answer(one)

    def _answer(self, setting: EngineSetting) -> bool:
        """Load a setting's engine and have it answer all that there is for it; whether it was loaded."""
        if setting.name not in self._failed:
            engine, began = _OneOfSeveral(setting.name), time.monotonic()
            try:
                if setting.refusal:
                    raise EngineError(setting.refusal)
                engine.launch(self._told(setting), self._log(setting))
                info = engine.wait_ready()
                state = SettingState(info=info, start_seconds=round(time.monotonic() - began, 3))
                self.server.settings[setting.name] = state
                if self.server.info is None:
                    self.server.started(dict(info))
                self._ask(setting, engine)
            except EngineError as error:
                self._failed[setting.name] = f"setting {setting.name}: {error}"
                known = self.server.settings.get(setting.name, SettingState())
                self.server.settings[setting.name] = replace(known, failure=str(error))
            finally:
                engine.end()
        if reason := self._failed.get(setting.name):
            self._give_up(setting, reason)
        return setting.name not in self._failed

    def _told(self, setting: EngineSetting) -> Hello:
        return replace(
            self.hello,
            model=setting.model,
            backend=setting.backend,
            options=setting.options,
            replicas=setting.replicas,
            silence=setting.silence,
            start_limit=setting.start_limit,
            offline=setting.offline,
            settings=(),
        )

    def _log(self, setting: EngineSetting) -> Path:
        log = Path(self.hello.log)
        own = log.with_stem(f"{log.stem}-{setting.name}")
        if not self.hello.is_resumed:
            own.write_bytes(b"")  # an earlier run's, in a folder that is used again
        return own

    def _ask(self, setting: EngineSetting, engine: EngineProcess) -> None:
        """Hand over what is queued, and results back, until nothing is left.

        Raises:
            EngineError: The engine is gone.
        """
        client, under_way, known, began = EngineClient(engine.address), dict[str, Job](), 0, time.monotonic()
        earlier = Done.sum(state.done for state in self.server.settings.values())
        try:
            while True:
                # A setting that nobody has asked yet waits for its jobs; one that is done makes room for the next.
                is_idle = not under_way and not self.queued[setting.name]
                may_get_more = any(map(self.server.unfinished.get, setting.suites))
                is_unasked = not known and not any(self.queued.values())
                self._take_in(patience=(_SOON if may_get_more else _LOOK if is_unasked else 0) if is_idle else 0)
                under_way |= self._submit(setting, engine, client)
                if under_way:
                    results, done = client.finished(known)
                    known += len(results)
                    self._note(setting, done, time.monotonic() - began)
                    for key, result in results:
                        job = under_way.pop(key)
                        job.run.done = Done.sum([earlier, done])  # whoever has the last result may ask for it
                        self.server.finish(job.name, result)
                elif not may_get_more and (any(self.queued.values()) or known):
                    return
        except EngineDied as error:
            ended = engine.obituary(patience=2)
            reason = f"{engine.name} {ended or f'failed: {error}'}{engine.log_tail()}"
            for job in under_way.values():
                self.server.finish(job.name, Unanswered("error", f"setting {setting.name}: {reason}"))
            raise EngineError(reason) from None
        finally:
            client.close()

    def _note(self, setting: EngineSetting, done: Done, seconds: float) -> None:
        """What a setting's engine has done by now; before its results, for whoever has the last one may ask."""
        state = self.server.settings[setting.name]
        first = state.first_seconds if state.done.steps else round(seconds, 3)
        self.server.settings[setting.name] = replace(
            state, done=done, first_seconds=first, answer_seconds=round(seconds, 3)
        )

    def _take_in(self, patience: float) -> None:
        """Sort everything that waits by its setting; waits for the first."""
        first = self.hello.settings[0].name
        while True:
            try:
                name = self.server.waiting.get(block=patience > 0, timeout=patience)
            except Empty:
                return
            patience = 0
            ask = self.server.jobs[name].ask
            setting = first if isinstance(ask, FreeQuestion) else self._setting_of.get(ask.question.suite, first)
            self.queued[setting].append(self.server.jobs[name])

    def _submit(self, setting: EngineSetting, engine: EngineProcess, client: EngineClient) -> dict[str, Job]:
        """Hand over what is queued for a setting; its cells, by their keys. Free questions are answered at once."""
        jobs, self.queued[setting.name] = self.queued[setting.name], []
        if jobs and not engine.has_run:
            engine.begin(jobs[0].run.earlier_file)
        cells: dict[str, tuple[Job, CellQuestion]] = {}
        for job in jobs:
            if isinstance(job.ask, FreeQuestion):
                self.server.finish(job.name, _answer(client, job.ask))
            else:
                cells[job.key] = job, job.ask
        # Cells that were submitted together share one question object.
        for _, group in groupby(cells.items(), key=lambda item: id(item[1][1].question)):
            these = {key: ask for key, (_, ask) in group}
            client.submit(next(iter(these.values())).question, {key: ask.cell for key, ask in these.items()})
        return {key: job for key, (job, _) in cells.items()}

    def _give_up(self, setting: EngineSetting, reason: str) -> None:
        """Tell why to all that wait for an engine that cannot be had."""
        jobs, self.queued[setting.name] = self.queued[setting.name], []
        for job in jobs:
            self.server.finish(job.name, Unanswered("error", reason))


def _answer(client: EngineClient, ask: FreeQuestion) -> Result:
    try:
        return client.answer(ask)
    except EngineDied:
        raise
    except RetrievalHeadsError as error:
        return Unanswered("error", str(error))
