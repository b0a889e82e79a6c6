"""The session's one engine: a warm one that is joined, or launched once; how it failed or ended is told once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_retrieval_heads import ablating
from pytest_retrieval_heads.console import Console
from pytest_retrieval_heads.failure import EngineFailure
from pytest_retrieval_heads.options import Options
from pytest_retrieval_heads.plan import Plan, PlannedSetting
from pytest_retrieval_heads.provenance import check_answers
from pytest_retrieval_heads.run_files import TIME, RunFiles
from retrieval_heads.engine.backends.backend import find
from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.jobs import Done, SettingState
from retrieval_heads.engine.messages import EngineSetting, Hello
from retrieval_heads.engine.start import StartedWith, hello_of
from retrieval_heads.engine.warm import Order, SessionEngine, Warm, check_gpus, new_log, start, starting, warm_engines
from retrieval_heads.errors import ConfigError, EngineError
from retrieval_heads.redaction import without_values
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.identity import Identities


class SharedEngine:
    """Launches the engine process that every process of the session asks.

    Args:
        process: The engine to come, or the stored answers that stand in for one.
        options: The session's.
        files: The run's.
        console: Where the session speaks.
    """

    def __init__(self, process: EngineProcess, options: Options, files: RunFiles, console: Console) -> None:
        self.process = process
        self._options = options
        self.failure: EngineFailure | None = None
        """Why there is no engine, or none any more."""
        self.log = process.own_log
        self._files = files
        self._console = console

    def place_log(self, config: pytest.Config) -> None:
        """Have the engine print into the run's folder; without one into pytest's cache, a new file each session."""
        if self._files.folder is not None:
            self.log = self._files.folder.log
            return
        cache = getattr(config, "cache", None)
        try:
            if cache is not None:
                log: Path = cache.mkdir("rh") / "engine.log"
                log.unlink(missing_ok=True)
                self.log = log
        except OSError:
            pass  # a cache that cannot be written, as pytest itself says

    def serve_stored(self) -> None:
        """Give out the stored answers."""
        self.process.launch(Hello({}), self.log)

    def start(self, plan: Plan) -> Facts | None:
        """Launch the engine, where that was not done or tried, and wait until the model is loaded.

        An engine that does not start is no end: `failure` says why, and every test that needed it will.

        Returns:
            What the engine says of itself; `None` where it was not started now.
        """
        if self.process.is_launched or self.failure is not None:
            return None
        cells = f"{plan.total} cells of {', '.join(plan.suites)}; " if plan.suites else ""
        try:
            info = self._joined(plan, cells) or self._launched(plan, cells)
        except (ConfigError, EngineError) as error:
            line = str(error)
            said = line if line.startswith("the engine ") else f"the engine did not start: {line}"
            self._dismiss(said, "the engine did not start")
            return None
        info = without_values(info)
        seconds = self._files.engine_is_ready(info)
        try:
            unmasked = ablating.check_heads(plan.suites, info)
            self._files.warnings += unmasked + check_answers(plan, Identities.of_facts(info))
        except ConfigError as error:
            self._dismiss(f"the engine is not asked: {error}", "the engine was not asked")
            return None
        several = f"{info['replicas']} replicas of " if info.get("replicas", 1) > 1 else ""
        self._console.say(
            f"{several}{info['model']} {'are' if several else 'is'} ready in {seconds:.1f} s "
            f"({info['dtype']} on {info['device']}, {info['engine']})"
        )
        for warning in (*unmasked, *(f"WARNING: {info['model']}: {text}" for text in info.get("warnings", ()))):
            self._console.say(warning)
        return info

    def _hello(self, plan: Plan) -> Hello:
        """What the engine process is told.

        Raises:
            RetrievalHeadsError: The backend refuses the settings; of a matrix each setting's own refusal is told to
                its cells.
        """
        settings = tuple(_setting(name, one, plan.traced) for name, one in plan.settings.items())
        first = settings[0] if settings else _setting("", PlannedSetting(plan.model, plan.engine, []), plan.traced)
        if first.refusal and not settings:
            raise ConfigError(first.refusal)
        return Hello(
            model=first.model,
            traced=plan.traced,
            backend=first.backend,
            options=first.options,
            haystacks=tuple(plan.haystacks),
            is_resumed=self._earlier is not None,
            replicas=first.replicas,
            silence=None if settings else first.silence,
            start_limit=None if settings else first.start_limit,
            offline=first.offline,
            settings=settings,
        )

    def _joined(self, plan: Plan, cells: str) -> Facts | None:
        """What a warm engine says of itself that was started with what the plan needs; `None` where there is none.

        With `--rh-engine keep` one is started then.
        """
        session, mode = self.process, self._options.engine
        if not isinstance(session, SessionEngine) or mode == "own" or plan.settings:
            return None
        if find(plan.engine_section.kind).capabilities.is_elsewhere:
            if mode == "keep":
                self._console.say("an endpoint is kept by its server: --rh-engine keep does nothing")
            return None
        with starting(self._console.say) if mode == "keep" else nullcontext():
            engines = warm_engines()
            if not engines and mode != "keep":
                return None
            section = plan.engine_section
            needed = StartedWith.of(plan.model, section, traced=plan.traced)
            for warm in engines:
                if differing := warm.started.differences(needed):
                    self._console.say(f"{warm.name} is not used: {differing[0]}")
                elif (info := session.join(warm, self._earlier)) is not None:
                    self._console.say(f"{cells}asking {warm.name}, log {warm.log}")
                    return self._noted(warm, info)
            check_gpus(engines, plan.model, section)
            if mode != "keep":
                return None
            hello, log = replace(self._hello(plan), is_resumed=False), new_log()
            self._console.say(f"{cells}starting an engine that stays, log {log}")
            order = Order.of(hello, needed, section, log, self._options.config_file or None, self._options.sets)
            warm = start(order)
            info = session.join(warm, self._earlier)
            if info is None:
                raise EngineError(f"the engine is gone as soon as it was there{warm.last_words()}")
            return self._noted(warm, info)

    def _noted(self, warm: Warm, info: Facts) -> Facts:
        """Say in the run's own log where the engine's is."""
        own, self.log = self.log, Path(warm.log)
        if self._files.folder is not None:
            with suppress(OSError):
                own.write_text(f"answered by {warm.name}; its log is {warm.log}\n", encoding="utf-8")
        return {
            **info,
            "warm_engine": {"process": warm.process, "began": time.strftime(TIME, time.localtime(warm.began))},
        }

    def _launched(self, plan: Plan, cells: str) -> Facts:
        """What an engine of the session's own says of itself."""
        self._console.say(f"{cells}starting the engine, log {self._console.path(self.log)}")
        self.process.launch(self._hello(plan), self.log)
        info = self.process.wait_ready()
        self.process.begin(self._earlier)
        return info

    @property
    def _earlier(self) -> str | None:
        """The results of the run that is gone on with."""
        folder = self._files.folder
        return str(folder.results) if folder and folder.earlier else None

    def _dismiss(self, text: str, status: str) -> None:
        """End an engine that nobody can ask; whatever needed it is an error, and all else runs.

        Args:
            text: Why, one line that begins with "the engine", and the engine's last words below it.
            status: What `run.json` says of it.
        """
        self._files.facts |= {"status": status}
        self.process.dismiss(self._fail(text).line.removeprefix("the engine "))

    def _fail(self, text: str) -> EngineFailure:
        """The engine did not start or is gone: say so at once, and remember it for whatever needs it.

        Args:
            text: One line, and the engine's last words below it.
        """
        self.failure = EngineFailure(text)
        self._files.facts |= {"engine_failure": self.failure.line}
        self._console.say(self.failure.line)
        return self.failure

    def died(self, reason: str) -> EngineFailure:
        """How the engine ended, found out once.

        Args:
            reason: What a client heard of it.
        """
        if self.failure is None:
            ended = self.process.obituary(patience=2)
            self._fail(f"the engine {ended or f'failed: {reason}'}{self.process.log_tail()}")
        assert self.failure is not None
        return self.failure

    def settings(self) -> Mapping[str, SettingState]:
        """The engines of a matrix that had their turn; none where nobody can tell."""
        client = EngineClient(self.process.address)
        try:
            client.connect(patience=0)
            return client.counters().settings
        except EngineDied:
            return {}
        finally:
            client.close()

    def counters(self) -> dict[str, object]:
        """What the engine did, as `retrieval_heads.engine.jobs.Done` counts it; nothing where none can tell."""
        client = EngineClient(self.process.address)
        try:
            client.connect(patience=0)
            done = client.counters().done
        except EngineDied:
            return {}
        finally:
            client.close()
        if not done.steps:
            return {}
        usage = {} if done.usage is None else {"usage": done.usage.to_json()}
        share = done.feed_gap_seconds / (done.feed_gap_seconds + done.step_seconds)
        return {
            "prompt_tokens": done.prompt_tokens,
            "cached_tokens": done.cached_tokens,
            "reusable_tokens": done.reusable_tokens,
            "steps": done.steps,
            "step_seconds": round(done.step_seconds, 3),
            "feed_gap_seconds": round(done.feed_gap_seconds, 3),
            "feed_gap_share": round(share, 5),
            **({} if not done.other_replays else _others(done)),
            **usage,
        }


def _setting(name: str, planned: PlannedSetting, traced: bool) -> EngineSetting:
    """One engine as its process is told of it; why it cannot be loaded, as far as can be told before."""
    section, refusal, hello = planned.engine_section, "", Hello(planned.model)
    try:
        hello = hello_of(planned.model, section, traced=traced)
    except (ConfigError, EngineError) as error:
        refusal = str(error)
    return EngineSetting(
        name=name,
        model=planned.model,
        suites=tuple(suite.partition("/")[2] for suite in planned.suites),
        backend=hello.backend,
        options=hello.options,
        replicas=section.replicas,
        silence=section.silence,
        start_limit=section.start_limit,
        offline=hello.offline,
        refusal=refusal,
    )


def _others(done: Done) -> dict[str, object]:
    """What head scores cost that read other prompts than the samples' own."""
    return {
        "other_replays": done.other_replays,
        "other_replay_tokens": done.other_replay_tokens,
        "other_replay_seconds": round(done.other_replay_seconds, 3),
    }
